"""`plan --sample` and `plan --probe`: what some rows tell of all."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from batchloom.jobs.reports import assumption
from batchloom.jobs.reports.assumption import Assumption
from batchloom.models import MACHINES
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.forecasting import rehearsing
from batchloom.pipelines.stores import permission
from tests.local_ray import local_ray

Run = Callable[..., Any]
MakeJob = Callable[..., Path]


@pytest.mark.parametrize("where", [None, "id < '<b>2'"])
def test_a_sample_of_all_rows_tells_what_the_run_found(
    batchloom: Run, finished: Any, tmp_path: Path, where: str | None
) -> None:
    chosen = ["--set", f"input.where={where}"] if where else []
    options = [finished.job, "--output", tmp_path, "--sample", "100", *chosen]
    said = batchloom("plan", *options, "--json")
    assert said.code == 0, said.err
    forecast = said.json[0]["forecast"]
    assert forecast["num_rows"] == 30
    assert forecast["chosen"] == {"total": forecast["num_looked_at"], "standard_error": 0}, "all rows were seen"
    if where:
        assert 0 < forecast["num_looked_at"] < 30
        assert f"Chosen        {forecast['num_looked_at']} rows" in batchloom("plan", *options).out
        return
    assert forecast["num_looked_at"] == 30
    last = finished.said.json[-1]
    assert forecast["input_tokens"]["total"] == last["totals"]["input_tokens"]
    assert {kind: rows["total"] for kind, rows in forecast["errors"].items()} == last["errors_by_kind"]
    words = batchloom("plan", *options).out
    assert re.search(r"^Sample +30 rows of 30, from all over the input$", words, re.MULTILINE)
    assert re.search(r"^Errors +about 3 rows \(1 empty_text, 1 null_text, 1 too_long\)$", words, re.MULTILINE)


def test_a_sample_of_some_rows_says_how_far_off_it_may_be(
    batchloom: Run, make_job: MakeJob, make_sentences: Callable[..., list[str]], tmp_path: Path
) -> None:
    texts = [" ".join(make_sentences(1 + row % 3)) for row in range(900)]
    pq.write_table(pa.table({"id": range(900), "text": texts}), tmp_path / "many.parquet", row_group_size=100)
    job = make_job(input={"paths": [str(tmp_path / "many.parquet")]})
    every, some = (batchloom("plan", job, "--sample", rows, "--json").json[0]["forecast"] for rows in (900, 150))
    true, said = every["input_tokens"]["total"], some["input_tokens"]
    assert some["num_looked_at"] == 150
    assert 0 < said["standard_error"] < 0.1 * said["total"]
    assert abs(said["total"] - true) < 4 * said["standard_error"]
    assert re.search(
        r"^Tokens +about [\d,]+ \(±\d+\.\d%\) in, ", batchloom("plan", job, "--sample", 150).out, re.MULTILINE
    )


@pytest.fixture
def ray_of_this_process() -> Iterator[None]:
    """A Ray of this process: one that tests before have left, or one for two probes."""
    if ray.is_initialized():
        yield
        return
    with local_ray():
        yield


@pytest.fixture
def workers_of_stages(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """For each probe, when it waits for its replica, the processes that stages of a run have been started in by then, a
    number each time that a stage was called."""
    loaded, seen = rehearsing._loaded, list[list[int]]()
    folder = tmp_path_factory.mktemp("stages")

    def call(batch: Any) -> Any:
        (folder / f"{os.getpid()}-{uuid4().hex}").touch()
        return batch

    def look(*arguments: Any) -> Any:
        seen.append([int(file.name.partition("-")[0]) for file in folder.iterdir()])
        for file in folder.iterdir():
            file.unlink()
        return loaded(*arguments)

    monkeypatch.setattr(rehearsing, "_nothing", call)
    monkeypatch.setattr(rehearsing, "_loaded", look)
    return seen


@pytest.mark.usefixtures("ray_of_this_process")
def test_a_probe_computes_rows_as_a_run_does_and_writes_nothing(
    batchloom: Run, finished: Any, workers_of_stages: list[list[int]], tmp_path: Path
) -> None:
    """The rows are those of the finished job, so their tokens are, and its errors.

    Without the workers that a run starts beside its replica, a start-up of 10 s was planned as 5.
    """
    options = ("plan", finished.job, "--output", tmp_path, "--probe", "--price-per-hour", "36")
    said, words = batchloom(*options, "--json"), batchloom(*options).out
    assert said.code == 0, said.err
    assert list(tmp_path.iterdir()) == []
    assert [len(calls) for calls in workers_of_stages] == [6, 6], "two stages for each of three units"
    assert os.getpid() not in {process for calls in workers_of_stages for process in calls}
    (values,) = said.json
    rehearsal, totals = values["rehearsal"], finished.said.json[-1]["totals"]
    assert rehearsal["num_rows"] == totals["rows"] == 30
    assert rehearsal["output_tokens"] == {"total": pytest.approx(totals["output_tokens"]), "standard_error": 0}
    assert {kind: round(rows["total"]) for kind, rows in rehearsal["errors"].items()} == finished.said.json[-1][
        "errors_by_kind"
    ]
    assert rehearsal["dtype"] == values["replica"]["dtype"] == "float32"
    assert 0 < rehearsal["loading_seconds"] < rehearsal["startup_seconds"]
    assert rehearsal["seconds_a_row"] > 0
    one, four, sixteen = (rehearsal["seconds"][number] for number in ("1", "4", "16"))
    assert rehearsal["startup_seconds"] < sixteen == four < one, "three units keep three replicas busy"
    assert rehearsal["money"]["16"] == pytest.approx(16 * sixteen / 100)
    assert re.search(
        r"^Probe +30 rows on one replica \(.+, float32\) in [\d.]+ s, after a start of ", words, re.MULTILINE
    )
    assert re.search(
        r"^Speed +[\d.,]+ rows/s, [\d.,]+ tokens/s in, [\d.,]+ tokens/s out; padding 1\.\d\d ", words, re.MULTILINE
    )
    assert re.search(r"^Duration +[\d.]+ m?i?n?s?.* with 1 replica, for \d+\.\d\d$", words, re.MULTILINE)
    assert re.search(r"^ +.* with 16 replicas, of which 3 have units, for \d+\.\d\d$", words, re.MULTILINE)


def test_money_without_a_probe_is_refused(batchloom: Run, make_job: MakeJob) -> None:
    said = batchloom("plan", make_job(), "--price-per-hour", "2")
    assert said.code == 2
    assert "Add --probe" in said.err


def test_an_output_that_cannot_be_written_is_told_before_rows_are_read(
    batchloom: Run, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permission.os, "access", lambda path, _: path != str(tmp_path))  # root may always
    said = batchloom("plan", make_job(), "--json")
    assert said.code == 2
    assert said.json[0]["is_writable"] is False, "the plan is told all the same"
    assert said.json[1]["kind"] == "OutputError"
    assert "cannot be written" in said.err
    said = batchloom("plan", make_job(), "--sample", 10, "--json")
    assert [line.get("kind") for line in said.json] == ["OutputError"]


# ------------------------------------------------------------------------------------- the machine that is assumed


def test_the_machine_of_an_estimate_is_named_with_its_figures_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assumption, "gpus_here", lambda: [])
    assumed = Assumption.of(None, {})
    assert assumed.machine == MACHINES["h100"]
    assert assumed.words("bfloat16") == (
        "NVIDIA H100 SXM a rank (80 GB, 3.35 TB/s, 989 TFLOP/s in bfloat16: peak figures of its maker), assumed, as "
        "this machine has no GPU: --gpu names another"
    )
    assert "67 TFLOP/s in float32" in assumed.words("float32")
    monkeypatch.setattr(assumption, "gpus_here", lambda: ["NVIDIA L4", "NVIDIA L4"])
    assert Assumption.of(None, {}) == Assumption(MACHINES["l4"], "the GPU of this machine")
    monkeypatch.setattr(assumption, "gpus_here", lambda: ["NVIDIA GeForce RTX 4090"])
    unknown = Assumption.of(None, {})
    assert unknown.machine == MACHINES["h100"]
    assert "no figures of NVIDIA GeForce RTX 4090, which is here, are known" in unknown.reason


def test_a_machine_is_named_and_its_figures_are_told() -> None:
    told = Assumption.of("L4", {"memory": 48e9})
    assert told.machine.bandwidth == MACHINES["l4"].bandwidth
    assert told.machine.memory == 48e9
    assert told.reason == "as --gpu says; --memory as told"
    with pytest.raises(ConfigError, match=r"no figures of 'tpu' are known. Use one of h100, "):
        Assumption.of("tpu", {})
