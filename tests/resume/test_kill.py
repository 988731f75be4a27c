"""SIGKILL in mid-run, for real: the same command again ends with the bytes of an uninterrupted run."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file, save_file

from batchloom import pipelines
from tests.forms import write
from tests.processes import with_setting

NUM_ROWS, ROWS_PER_UNIT = 240, 10
NUM_UNITS = NUM_ROWS // ROWS_PER_UNIT
RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


@pytest.fixture
def form() -> str:
    """Of the input's files."""
    return ".parquet"


@pytest.fixture
def how() -> dict[str, Any]:
    """Parts are written."""
    return {}


@pytest.fixture
def job_file(tmp_path: Path, checkpoint: str, make_sentences, form: str, how: dict[str, Any]) -> Path:
    for shard in range(3):
        folder = tmp_path / "corpus" / (f"lang={shard % 2}" if "partition_by" in how else "")
        folder.mkdir(parents=True, exist_ok=True)
        first = shard * NUM_ROWS // 3
        table = pa.table({"id": range(first, first + NUM_ROWS // 3), "text": make_sentences(NUM_ROWS // 3, seed=shard)})
        write(table, folder, str(shard), form)
    job = {
        "task": "summarization",
        "model": checkpoint,
        "input": {"paths": [str(tmp_path / "corpus")], "rows_per_unit": ROWS_PER_UNIT},
        "output": {"path": str(tmp_path / "out"), "rows_per_part": ROWS_PER_UNIT, **how},
        "generation": {"num_beams": 4, "max_length": 60, "min_length": 50},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def start(job_file: Path, output: Path, *settings: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "batchloom", "run", str(job_file)]
    for setting in (f"output.path={output}", *settings):
        command += ["--set", setting]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def parts(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("part-*")}


def kill_when(process: subprocess.Popen, output: Path, num_parts: int) -> None:
    """SIGKILL the driver alone, as the kernel's out-of-memory killer would, once that many parts are there."""
    wait_for_parts(process, output, num_parts)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_parts(process: subprocess.Popen, output: Path, num_parts: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(output.rglob("part-*"))) < num_parts:
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.02)


def wait_until_quiet(output: Path) -> dict[str, bytes]:
    """Parts after the killed driver's workers are gone too: a write in flight may still land, whole."""
    before = None
    while before != (now := parts(output)):
        before = now
        time.sleep(1.0)
    return now


SLOW_FORMS = [
    *(pytest.param(form, {}, marks=pytest.mark.slow) for form in (".jsonl", ".jsonl.gz", ".csv", ".tsv.zst", ".txt")),
    pytest.param(".parquet", {"format": "jsonl"}, marks=pytest.mark.slow),
    pytest.param(
        ".parquet", {"format": "jsonl", "compression": "none", "partition_by": ["lang"]}, marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("form", "how"), [(".parquet", {}), *SLOW_FORMS])
def test_a_job_killed_three_times_ends_like_one_that_was_not(job_file: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(job_file, whole)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed.decode()

    kept: dict[str, bytes] = {}
    for num_parts in (1, NUM_UNITS // 3, 2 * NUM_UNITS // 3):
        kill_when(start(job_file, broken), broken, num_parts)
        survived = wait_until_quiet(broken)
        assert num_parts <= len(survived) < NUM_UNITS
        assert kept.items() <= survived.items()
        kept = survived
        assert not (broken / "_SUCCESS").exists()
    modified = {name: (broken / name).stat().st_mtime_ns for name in kept}

    process = start(job_file, broken)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed.decode()
    assert parts(broken) == parts(whole)
    assert {name: (broken / name).stat().st_mtime_ns for name in kept} == modified  # not written again
    manifest = pipelines.verify(str(broken))
    assert manifest.ok
    assert manifest.num_rows == NUM_ROWS


def test_a_killed_replica_is_replaced_and_no_row_is_lost(job_file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BATCHLOOM_TEST_RUN", str(tmp_path))
    output = tmp_path / "out"
    process = start(job_file, output)
    wait_for_parts(process, output, 2)
    replicas = [pid for pid, line in with_setting(f"BATCHLOOM_TEST_RUN={tmp_path}").items() if "Infer" in line]
    assert len(replicas) == 1
    os.kill(replicas[0], signal.SIGKILL)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed.decode()
    verification = pipelines.verify(str(output))
    assert verification.ok, verification.problems
    assert verification.num_rows == NUM_ROWS


def test_a_killed_driver_leaves_no_process_behind(job_file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BATCHLOOM_TEST_RUN", str(tmp_path))
    process = start(job_file, tmp_path / "out")
    monkeypatch.delenv("BATCHLOOM_TEST_RUN")
    kill_when(process, tmp_path / "out", 1)
    marker = f"BATCHLOOM_TEST_RUN={tmp_path}"
    wait_until_gone(marker)


@pytest.fixture
def temporary_folder(monkeypatch) -> Iterator[Path]:
    """For what runs; its name is short, as Ray's sockets go there, whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="b", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_a_job_on_two_ranks_survives_the_kill_of_a_rank_and_of_the_actor(
    job_file: Path, tmp_path: Path, temporary_folder: Path, monkeypatch
) -> None:
    one, both = tmp_path / "one", tmp_path / "both"
    process = start(job_file, one)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed.decode()

    monkeypatch.setenv("BATCHLOOM_TEST_RUN", str(tmp_path))
    marker = f"BATCHLOOM_TEST_RUN={tmp_path}"
    process = start(job_file, both, *TWO_RANKS)
    wait_for_parts(process, both, 2)
    (rank,) = running(marker, "batchloom.models.ranks.follower")
    os.kill(rank, signal.SIGKILL)
    wait_for_parts(process, both, len(parts(both)) + 5)  # more than one may be on its way to be written
    (replica,) = running(marker, "Infer")
    (rank,) = running(marker, "batchloom.models.ranks.follower")
    os.kill(replica, signal.SIGKILL)
    wait_until(lambda: rank not in running(marker, "batchloom.models.ranks.follower"), seconds=10)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed.decode()
    assert parts(both).keys() == parts(one).keys()
    tables = [pq.read_table(folder).sort_by("id") for folder in (both, one)]
    assert tables[0] == tables[1]
    verification = pipelines.verify(str(both))
    assert verification.ok, verification.problems
    wait_until(lambda: not running(marker, "batchloom.models.ranks.follower"), seconds=10)
    wait_until_gone(marker)
    assert not list(temporary_folder.glob("batchloom-*"))


def test_a_rank_killed_while_it_loads_is_replaced(job_file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BATCHLOOM_TEST_RUN", str(tmp_path))
    process = start(job_file, tmp_path / "out", *TWO_RANKS)
    killed = kill_ranks_as_they_come(process, f"BATCHLOOM_TEST_RUN={tmp_path}", at_most=2)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed.decode()
    assert len(killed) == 2
    assert pipelines.verify(str(tmp_path / "out")).num_rows == NUM_ROWS


def test_ranks_that_never_live_to_load_end_the_job_with_words(job_file: Path, tmp_path: Path, monkeypatch) -> None:
    """A replica that died of loading was started for ever."""
    monkeypatch.setenv("BATCHLOOM_TEST_RUN", str(tmp_path))
    process = start(job_file, tmp_path / "out", *TWO_RANKS, "engine.probe=false")
    killed = kill_ranks_as_they_come(process, f"BATCHLOOM_TEST_RUN={tmp_path}")
    printed, _ = process.communicate()
    assert process.returncode == 1, printed.decode()
    assert b"A replica was lost 4 times while it loaded the model. Rank 1 of the model (process" in printed
    assert len(killed) == 4


def test_weights_that_can_never_load_end_the_job_with_their_own_words(
    job_file: Path, tmp_path: Path, checkpoint: str
) -> None:
    """What a constructor of an actor raises came as a 'SystemException' without words."""
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["model.encoder.layers.0.fc1.bias"]
    save_file(weights, broken / "model.safetensors")
    process = start(job_file, tmp_path / "out", f"model={broken}", *TWO_RANKS, "engine.probe=false")
    printed, _ = process.communicate()
    assert process.returncode == 2, printed.decode()
    assert b"encoder.layers.0.fc1.bias [64] is missing" in printed
    assert b"lost" not in printed


def test_a_killed_driver_leaves_no_rank_behind(
    job_file: Path, tmp_path: Path, temporary_folder: Path, monkeypatch
) -> None:
    monkeypatch.setenv("BATCHLOOM_TEST_RUN", str(tmp_path))
    marker = f"BATCHLOOM_TEST_RUN={tmp_path}"
    process = start(job_file, tmp_path / "out", *TWO_RANKS)
    wait_for_parts(process, tmp_path / "out", 1)
    assert running(marker, "batchloom.models.ranks.follower")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not running(marker, "batchloom.models.ranks.follower"), seconds=10)
    wait_until_gone(marker)
    assert not list(temporary_folder.glob("batchloom-*"))


TWO_RANKS = ("engine.tensor_parallel=2", "engine.device=cpu")


def kill_ranks_as_they_come(process: subprocess.Popen, marker: str, at_most: int = 1000) -> set[int]:
    """SIGKILL each follower as soon as it is seen, long before it has a model, until the job ends."""
    killed: set[int] = set()
    while process.poll() is None and len(killed) < at_most:
        for rank in set(running(marker, "batchloom.models.ranks.follower")) - killed:
            os.kill(rank, signal.SIGKILL)
            killed.add(rank)
        time.sleep(0.05)
    return killed


def wait_until_gone(marker: str) -> None:
    """Nothing that a job started is left, within half a minute."""
    deadline = time.monotonic() + 30
    while left := ours(marker):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def running(marker: str, part_of_command: str) -> list[int]:
    return [process_id for process_id, line in with_setting(marker).items() if part_of_command in line]


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ours(marker: str) -> dict[int, str]:
    """Processes that a job started and should take with it. Two agents of Ray's node end by themselves: they look for
    their dead control store for up to a minute and a half first (seen with Ray 2.60), whatever the driver ran."""
    return {pid: line for pid, line in with_setting(marker).items() if not line.startswith(RAYS_AGENTS)}


@pytest.mark.parametrize(
    "server",
    [
        pytest.param("raylet", id="raylet"),
        pytest.param("gcs_server", id="control-store", marks=pytest.mark.slow),  # its loss is waited for for 25 seconds
    ],
)
def test_a_lost_part_of_ray_ends_the_job_with_words_and_the_same_command_goes_on(
    job_file: Path, tmp_path: Path, monkeypatch, server: str
) -> None:
    """Ray ended the driver's process itself, without a word of ours."""
    monkeypatch.setenv("BATCHLOOM_TEST_RUN", str(tmp_path))
    marker, output = f"BATCHLOOM_TEST_RUN={tmp_path}", tmp_path / "out"
    slow = ("generation.max_length=120", "generation.min_length=110")
    process = start(job_file, output, *slow)
    wait_for_parts(process, output, 1)
    (lost,) = [pid for pid, line in with_setting(marker).items() if line.split()[0].endswith(f"/{server}")]
    os.kill(lost, signal.SIGKILL)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1, printed.decode()
    assert b"does not answer for" in printed, printed.decode()
    assert b"SIGTERM handler is not set" not in printed  # said where a thread that is left over starts another Ray
    assert b"Finished parts are kept; the same command goes on from there." in printed
    assert b"Traceback" not in printed
    kept = parts(output)
    assert 1 <= len(kept) < NUM_UNITS
    wait_until_gone(marker)

    process = start(job_file, output, *slow)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed.decode()
    assert kept.items() <= parts(output).items()
    assert pipelines.verify(str(output)).ok
