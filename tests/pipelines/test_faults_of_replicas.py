"""Replicas that stop, hang or die, and input that does not come, on a real cluster: the job says so, and ends right."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray._private import state

from batchloom import pipelines
from batchloom.pipelines.config import LimitsConfig
from batchloom.pipelines.errors import JobError
from batchloom.pipelines.metrics import Event, ReplicaEnded, ReplicasStarting, UnitDone, Waiting
from batchloom.pipelines.running import driver

pytestmark = pytest.mark.usefixtures("ray_cluster")

QUIET = LimitsConfig(quiet_seconds=1.0, stall_minutes=0.2)
SOON = 15.0  # seconds to the first word about a fault


@dataclass
class Story:
    """Events of a job with their times, and what is done at one of them."""

    at: Callable[["Story", Event], None]
    events: list[tuple[float, Event]]
    fault_at: float = float("inf")

    def __call__(self, event: Event) -> None:
        self.events.append((time.monotonic(), event))
        self.at(self, event)

    def of(self, kind: type, after: float = 0.0) -> list[tuple[float, Any]]:
        return [(when, event) for when, event in self.events if isinstance(event, kind) and when > after]


def actors(part_of_class: str) -> list[int]:
    """The processes of living actors of a class, as Ray's control store knows them."""
    known = state.actors().values()
    return [one["Pid"] for one in known if one["State"] == "ALIVE" and part_of_class in one["ActorClassName"]]


def test_a_stopped_replica_is_told_of_within_seconds_and_started_again(make_job, output_table) -> None:
    """A job whose actor was stopped (SIGSTOP) said nothing for 100 seconds."""

    def stop_the_replica(story: Story, event: Event) -> None:
        if isinstance(event, UnitDone) and story.fault_at == float("inf"):
            time.sleep(0.3)  # for the units behind it, which may not be read yet
            story.fault_at = time.monotonic()
            for process_id in actors("MapWorker"):
                os.kill(process_id, signal.SIGSTOP)

    job = replace(make_job(generation={"num_beams": 8, "max_length": 60, "min_length": 50}), limits=QUIET)
    story = Story(stop_the_replica, [])
    manifest = pipelines.run(job, story)

    first, waiting = next((when, event) for when, event in story.of(Waiting, story.fault_at) if event.seconds >= 1)
    assert first - story.fault_at < SOON
    assert waiting.replicas[0].units
    _, ended = story.of(ReplicaEnded)[0]
    assert "did not report" in ended.reason
    assert manifest.totals["ok"] == 75
    assert output_table(job.output.path)["id"].to_pylist() == list(range(75))


class Shards(BaseHTTPRequestHandler):
    """A store that answers, or keeps its callers waiting while `may_answer` is not set."""

    may_answer: threading.Event
    folder: Path

    def do_HEAD(self) -> None:
        self._send(b"", self._content())

    def do_GET(self) -> None:
        if not self.may_answer.wait(120):
            return
        content = self._content()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        self._send(content[int(first) : int(last or len(content)) + 1], content, int(first))

    def _content(self) -> bytes:
        return (self.folder / Path(self.path).name).read_bytes()

    def _send(self, part: bytes, content: bytes, first: int = 0) -> None:
        self.send_response(206 if part else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part or content)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(corpus: Path) -> Iterator[tuple[str, threading.Event]]:
    may_answer = threading.Event()
    may_answer.set()
    handler = type("Handler", (Shards,), {"may_answer": may_answer, "folder": corpus})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.parquet", may_answer
    may_answer.set()
    server.shutdown()


def test_a_store_that_does_not_answer_is_told_of_within_seconds(make_job, server) -> None:
    """A GET that hung went unmentioned for 75 seconds."""
    url, may_answer = server

    def hang(story: Story, event: Event) -> None:
        if isinstance(event, ReplicasStarting):
            story.fault_at = time.monotonic()
            may_answer.clear()
        elif isinstance(event, Waiting) and event.replicas and event.replicas[0].is_ready:
            may_answer.set()

    story = Story(hang, [])
    manifest = pipelines.run(replace(make_job(paths=(url,)), limits=QUIET), story)
    assert story.of(Waiting)[0][0] - story.fault_at < SOON
    assert not any(replica.units for _, event in story.of(Waiting) for replica in event.replicas)
    assert manifest.totals["ok"] == 40


@pytest.fixture
def poison(monkeypatch) -> None:
    """Let a text kill the process that computes it, as a segmentation fault in a kernel would."""
    plan = driver.plan

    def plan_with_poison(config: Any) -> Any:
        job = plan(config)

        class Poisoned(type(job.task)):
            def ask(self, model: Any, token_ids: Any) -> Any:
                if any(len(ids) > 60 for ids in token_ids):
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().ask(model, token_ids)

        values = {field.name: getattr(job.task, field.name) for field in fields(job.task)}
        return replace(job, task=Poisoned(**values))

    monkeypatch.setattr(driver, "plan", plan_with_poison)


POISON = "batch " * 60


@pytest.fixture
def poison_job(make_job, tmp_path: Path, make_sentences, poison: None) -> Any:  # noqa: ARG001
    """Four units of three rows; in the second one a row kills."""
    texts = make_sentences(12, seed=5, longest=8)
    texts[4] = POISON
    (tmp_path / "poison").mkdir()
    pq.write_table(pa.table({"id": range(12), "text": texts}), tmp_path / "poison" / "a.parquet", row_group_size=3)
    return make_job(
        task="feature-extraction", generation={}, paths=(str(tmp_path / "poison"),), rows_per_unit=3,
        output=str(tmp_path / "poisoned"),
    )  # fmt: skip


def test_a_row_that_kills_its_process_is_an_error_row_and_all_others_are_answered(poison_job, output_table) -> None:
    """It killed replica after replica, for ever."""
    manifest = pipelines.run(replace(poison_job, limits=LimitsConfig(quiet_seconds=5.0)))
    rows = output_table(poison_job.output.path).to_pylist()
    assert [row["id"] for row in rows] == list(range(12))
    assert [row["id"] for row in rows if row["error"] is not None] == [4]
    assert (rows[4]["error"]["stage"], rows[4]["error"]["kind"]) == ("infer", "killed_the_process")
    assert all(row["embedding"] for row in rows if row["id"] != 4)
    assert manifest.errors_by_kind == {"killed_the_process": 1}
    assert pipelines.verify(poison_job.output.path).ok


def test_a_unit_fails_after_as_many_attempts_as_the_job_allows(poison_job) -> None:
    with pytest.raises(JobError, match=r"limits\.max_unit_attempts"):
        pipelines.run(replace(poison_job, limits=LimitsConfig(max_unit_attempts=1)))
    parts = [pq.read_table(path)["id"].to_pylist() for path in Path(poison_job.output.path).glob("*.parquet")]
    ids = sorted(row for part in parts for row in part)
    assert 4 not in ids
    assert not (Path(poison_job.output.path) / "_SUCCESS").exists()
