"""Rows with errors are computed again, and every other answer stays as it is."""

import ast
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom import pipelines
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import ERROR_KINDS, ConfigError, ErrorLimitError, OutputError
from batchloom.pipelines.ledger.parts import counts_of, read_part
from batchloom.pipelines.ledger.sealed import FOOTER_KEY, sealed
from batchloom.pipelines.metrics import Event, Planned, ReplicasStarting, Retrying, UnitDone

pytestmark = pytest.mark.usefixtures("ray_cluster")


def parts(job: JobConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(job.output.path).glob("*.parquet")}


def with_errors(part: Path, rows: Iterable[int], kind: str = "out_of_memory") -> None:
    """Write a part as it would be if some of its rows had failed for a reason that has gone since."""
    footer = json.loads(pq.read_metadata(part).metadata[FOOTER_KEY])
    table = pq.read_table(part)
    values = table.to_pylist()
    for row in rows:
        if values[row]["num_output_tokens"] >= 15 or values[row]["finish_reason"] == "length":  # of max_length 16
            footer["counts"]["degenerate"]["truncated"] -= 1
        values[row] |= {
            "summary_text": None, "num_input_tokens": 0, "num_output_tokens": 0, "finish_reason": None,
            "error": {"stage": "infer", "kind": kind, "message": "no room"},
        }  # fmt: skip
    failed = pa.Table.from_pylist(values, table.schema)
    footer["counts"] |= counts_of(failed)
    del footer["seal"]
    part.write_bytes(sealed(failed, footer))


@pytest.fixture
def spoiled(make_job: Callable[..., JobConfig]) -> Callable[..., tuple[JobConfig, dict[str, bytes]]]:
    """A finished job of which five rows of two parts have errors of two kinds, and its parts as they were without."""

    def spoil(**changes: Any) -> tuple[JobConfig, dict[str, bytes]]:
        job = make_job(**changes)
        pipelines.run(job)
        whole = parts(job)
        first, _, third, *_ = (Path(job.output.path) / name for name in sorted(whole))
        with_errors(first, [0, 3])
        with_errors(third, [1, 2, 5], "refused_request")
        (Path(job.output.path) / "_batchloom" / "manifest.json").unlink()
        assert pipelines.run(job).errors_by_kind == {"out_of_memory": 2, "refused_request": 3}
        assert pipelines.verify(job.output.path).ok
        return job, whole

    return spoil


@pytest.mark.parametrize(
    "generation",
    [
        {"num_beams": 2, "max_length": 16, "min_length": 2},
        {"num_beams": 1, "do_sample": True, "max_length": 16, "top_k": 20},
    ],
    ids=["beams", "samples"],
)
def test_rows_with_errors_are_answered_and_no_other_byte_changes(spoiled, generation: dict[str, Any]) -> None:
    job, whole = spoiled(generation=generation)
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, UnitDone):
            with pytest.raises(OutputError, match="is not finished"):
                pipelines.verify(job.output.path)
            for name, content in parts(job).items():  # a kill here leaves parts that are whole, old or new
                assert read_part(name, content).record.num_rows > 0

    manifest = pipelines.run(job, watch, retry_errors=[])
    assert manifest.totals["errors"] == 0
    assert manifest.timing["units_computed"] == 2
    assert parts(job) == whole
    assert pipelines.verify(job.output.path).ok
    assert [event for event in events if isinstance(event, Retrying)] == [
        Retrying(2, {"out_of_memory": 2, "refused_request": 3})
    ]
    planned = next(event for event in events if isinstance(event, Planned))
    assert (planned.num_units, planned.num_units_done) == (9, 7)


def test_only_the_kinds_that_are_named_are_computed_again(spoiled) -> None:
    job, whole = spoiled()
    first, _, third, *_ = sorted(whole)
    kept = parts(job)[third]
    manifest = pipelines.run(job, retry_errors=["out_of_memory"])
    assert manifest.errors_by_kind == {"refused_request": 3}
    assert parts(job)[first] == whole[first]
    assert parts(job)[third] == kept
    with pytest.raises(ConfigError, match=r"no kind of error 'out_of_mem'.*so far: 3 refused_request\. All kinds: dam"):
        pipelines.run(job, retry_errors=["out_of_mem"])
    assert pipelines.run(job, retry_errors=["out_of_memory"]) == manifest  # none is left, and nothing is computed
    assert pipelines.run(job, retry_errors=["refused_request"]).totals["errors"] == 0
    assert pipelines.verify(job.output.path).ok


def test_errors_that_persist_persist(make_job, tmp_path) -> None:
    """Retried once, twice, and beside duplicates, of which one is computed for all."""
    (tmp_path / "odd").mkdir()
    texts = ["twice", None, "", "twice", "word " * 500, "once"]
    pq.write_table(pa.table({"id": range(6), "text": texts}), tmp_path / "odd" / "odd.parquet")
    job = make_job(paths=(str(tmp_path / "odd"),))
    before = pipelines.run(job)
    whole = parts(job)
    for _ in range(2):
        again = pipelines.run(job, retry_errors=[])
        assert again.timing["units_computed"] == 1
        assert (again.totals, again.errors_by_kind, again.parts) == (before.totals, before.errors_by_kind, before.parts)
        assert parts(job) == whole
    with_errors(Path(job.output.path) / next(iter(whole)), [0, 3])
    (Path(job.output.path) / "_batchloom" / "manifest.json").unlink()
    pipelines.run(job, retry_errors=["out_of_memory"])
    assert parts(job) == whole
    assert pipelines.verify(job.output.path).ok


def test_an_output_without_errors_is_left_alone(make_job) -> None:
    job = make_job()
    before = pipelines.run(job)
    events: list[Event] = []
    assert pipelines.run(job, events.append, retry_errors=[]) == before
    assert Retrying(0, {}) in events
    assert ReplicasStarting not in map(type, events)
    overwriting = replace(job, output=replace(job.output, mode="overwrite"))
    with pytest.raises(ConfigError, match="overwrite removes them"):
        pipelines.run(overwriting, retry_errors=[])


def test_an_unfinished_output_is_finished_and_its_errors_retried(spoiled) -> None:
    job, whole = spoiled()
    folder = Path(job.output.path)
    (folder / "_batchloom" / "manifest.json").unlink()
    (folder / sorted(whole)[-1]).unlink()

    def stop(event: Event) -> None:
        if isinstance(event, UnitDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipelines.run(job, stop, retry_errors=[])
    assert pipelines.run(job, retry_errors=[]).totals["errors"] == 0
    assert parts(job) == whole
    assert pipelines.verify(job.output.path).ok


LONG = "The river of the harbour was long. " * 40
CHUNKS = {"long_documents": "chunk"}


@pytest.fixture
def with_long_texts(make_job, tmp_path: Path, make_sentences) -> Callable[..., JobConfig]:
    """A job of one part, in four units, of whose rows the first five are longer than the model."""
    (tmp_path / "long").mkdir()
    texts = [*(f"{LONG}{row}" for row in range(5)), *make_sentences(14), None]
    pq.write_table(pa.table({"id": range(20), "text": texts}), tmp_path / "long" / "long.parquet")

    def make(**changes: Any) -> JobConfig:
        return make_job(**{"paths": (str(tmp_path / "long"),), "rows_per_unit": 5, "rows_per_part": 20, **changes})

    return make


def test_errors_are_retried_with_options_that_concern_them_alone(with_long_texts, tmp_path, output_table) -> None:
    """The other rows are not computed again, and both configurations are recorded."""
    job, chunking = with_long_texts(), with_long_texts(task_options=CHUNKS)
    before = pipelines.run(job)
    assert before.errors_by_kind == {"too_long": 5, "null_text": 1}
    units: list[UnitDone] = []
    manifest = pipelines.run(
        chunking, lambda event: units.append(event) if isinstance(event, UnitDone) else None, retry_errors=["too_long"]
    )
    assert [event.record.ranges for event in units] == [((0, 5),)]
    assert manifest.errors_by_kind == {"null_text": 1}
    whole = pipelines.run(with_long_texts(output=str(tmp_path / "whole"), task_options=CHUNKS))
    assert output_table(job.output.path) == output_table(tmp_path / "whole")
    assert manifest.totals == {**whole.totals, "bytes": manifest.totals["bytes"]}
    assert (manifest.fingerprint, manifest.job["task_options"]) == (before.fingerprint, {})
    (retry,) = manifest.retries
    assert (retry["fingerprint"], retry["kinds"]) == (whole.fingerprint, ["too_long"])
    assert retry["task_options"]["long_documents"] == "chunk"
    assert pipelines.verify(job.output.path).ok
    for again in (job, chunking):  # either job file is this output's now
        assert pipelines.run(again) == manifest
    with pytest.raises(OutputError, match=r"another configuration:\n  task_options\.long_doc.*\n.*--retry-errors"):
        pipelines.run(with_long_texts(task_options={"long_documents": "truncate"}))
    with pytest.raises(ConfigError, match=r"decide them, too: task_options\.prefix was .*only task_options\.long_doc"):
        pipelines.run(with_long_texts(task_options={**CHUNKS, "prefix": "Sum: "}), retry_errors=[])
    with pytest.raises(ConfigError, match=r"long_documents was .*no option may differ for null_text"):
        pipelines.run(with_long_texts(task_options={"long_documents": "truncate"}), retry_errors=["null_text"])


def test_a_job_that_was_stopped_by_its_errors_goes_on_with_the_option_that_cures_them(
    with_long_texts, tmp_path, output_table
) -> None:
    """The errors are in answers of a part that is not finished: their unit is computed again, and no other."""
    changes = {"max_error_rate": 0.2}
    job = with_long_texts(**changes)
    with pytest.raises(ErrorLimitError, match=r"Finished parts .*--retry-errors=too_long --set task_options\.long_doc"):
        pipelines.run(job)
    assert parts(job) == {}
    saved = len(list((Path(job.output.path) / "_batchloom" / "answers").rglob("*.pq")))
    assert saved > 0
    chunking = with_long_texts(**changes, task_options=CHUNKS)
    manifest = pipelines.run(chunking, retry_errors=["too_long"])
    assert manifest.errors_by_kind == {"null_text": 1}
    pipelines.run(with_long_texts(output=str(tmp_path / "whole"), task_options=CHUNKS))
    assert output_table(job.output.path) == output_table(tmp_path / "whole")
    assert manifest.retries[0]["task_options"]["long_documents"] == "chunk"
    assert pipelines.verify(job.output.path).ok


def test_every_kind_of_error_is_known() -> None:
    """--retry-errors refuses what is none, so the list must be whole."""
    made = set()
    for path in Path(pipelines.__file__).resolve().parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "RowError":
                made |= {kind.value for kind in call.args[1:2] if isinstance(kind, ast.Constant)}
    assert made == ERROR_KINDS
