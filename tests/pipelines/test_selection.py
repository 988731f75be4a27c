"""Jobs with a selection: every chosen row once, the others counted, whatever interrupts and changes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom import pipelines
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import ErrorLimitError, OutputError
from batchloom.pipelines.ledger import ledger
from batchloom.pipelines.ledger.verification import Verification
from batchloom.pipelines.metrics import Event, UnitDone
from batchloom.pipelines.selection.sample import sampled
from tests.conftest import sentences
from tests.forms import write
from tests.pipelines.test_retry import parts, with_errors

pytestmark = pytest.mark.usefixtures("ray_cluster")

FILES = {"lang=de/a": 30, "lang=en/a": 40, "lang=en/b": 25, "lang=fr/a": 20}
WHERE = "lang in ('en', 'fr') and length(text) > 60"


@pytest.fixture
def select(make_job: Callable[..., JobConfig], tmp_path: Path) -> Callable[..., JobConfig]:
    """A job over a tree of Hive's, with settings of its input."""

    def make(form: str = ".parquet", output: str = "out", **settings: Any) -> JobConfig:
        folder = tmp_path / "in"
        for number, (name, num_rows) in enumerate(FILES.items()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / f"{name}{form}").exists():  # written again it would be another file
                ids = [f"{number}-{row}" for row in range(num_rows)]
                write(pa.table({"id": ids, "text": sentences(num_rows, seed=number)}), folder, name, form)
        job = make_job(paths=(str(folder),), output=str(tmp_path / output), rows_per_unit=4, rows_per_part=20)
        return replace(job, input=replace(job.input, **{"keep_columns": ("id", "_source"), **settings}))

    return make


def expected(where: bool = True, sample: float | None = None, form: str = ".parquet") -> list[str]:
    """The ids of the rows that WHERE chooses of a sample."""
    ids = []
    for number, (name, num_rows) in enumerate(FILES.items()):
        flags = sampled(f"{name}{form}", 0, num_rows, 1.0 if sample is None else sample)
        for row, text in enumerate(sentences(num_rows, seed=number)):
            if flags[row] and (not where or ("lang=de" not in name and len(text) > 60)):
                ids.append(f"{number}-{row}")
    return sorted(ids)


def ids_of(job: JobConfig) -> list[str]:
    """The ids in an output, each of which is beside the place that it came from."""
    rows = pq.read_table(job.output.path).to_pylist()
    for row in rows:
        number = list(FILES).index(row["_source"]["file"].partition(".")[0])
        assert row["id"] == f"{number}-{row['_source']['row']}"
    return sorted(row["id"] for row in rows)


def verified(job: JobConfig) -> Verification:
    found = pipelines.verify(job.output.path)
    assert found.ok, found.problems
    assert found.num_rows + found.num_left_out == found.num_input_rows
    return found


def interrupt(event: Event) -> None:
    if isinstance(event, UnitDone):
        raise KeyboardInterrupt


@pytest.mark.parametrize("form", [".parquet", ".jsonl.gz"])
def test_a_job_interrupted_three_times_answers_each_chosen_row_once(select, monkeypatch, form) -> None:
    monkeypatch.setattr("batchloom.pipelines.formats.scan.ROW_GROUP_BYTES", 1500)
    job = select(form, where=WHERE, sample=0.7)
    job = replace(job, input=replace(job.input, rows_per_unit=3))  # so many units that three interruptions leave some
    plan = pipelines.plan(job)
    assert (plan.num_rows, plan.num_rows_excluded) == (85, 30)
    assert plan.notes == (
        "input.where and input.sample: some of 85 rows are chosen, as they are read. 30 more are in files that their "
        "partitions leave out.",
    )
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            pipelines.run(job, interrupt)
    manifest = pipelines.run(job)
    chosen = expected(sample=0.7, form=form)
    assert ids_of(job) == chosen
    assert (manifest.totals["rows"], manifest.totals["left_out"]) == (len(chosen), 115 - len(chosen))
    found = verified(job)
    assert (found.num_rows, found.num_left_out, found.num_input_rows) == (len(chosen), 115 - len(chosen), 115)
    again = select(form, "again", where=WHERE, sample=0.7)
    pipelines.run(again)
    assert parts(again) == parts(job)
    assert pipelines.run(job) == manifest
    with pytest.raises(OutputError, match=r"input\.sample was 0\.7, is null"):
        pipelines.run(select(form, where=WHERE))


def test_answers_do_not_depend_on_what_else_is_chosen(select) -> None:
    """Rows are drawn by their places, so that sampled answers are those of the whole job."""
    drawn = {"generation": {"num_beams": 1, "do_sample": True, "max_length": 16, "top_k": 20}}
    whole, some = (replace(job, **drawn) for job in (select(output="whole"), select(sample=0.4)))
    for job in (whole, some):
        pipelines.run(job)
    answers = {row["id"]: row["summary_text"] for row in pq.read_table(whole.output.path).to_pylist()}
    rows = pq.read_table(some.output.path).to_pylist()
    assert sorted(row["id"] for row in rows) == expected(where=False, sample=0.4)
    assert all(answers[row["id"]] == row["summary_text"] for row in rows)


def test_errors_are_retried_and_other_columns_kept_without_another_row(select) -> None:
    job = select(where=WHERE)
    pipelines.run(job)
    whole = parts(job)
    first, second = sorted(name for name in whole if pq.read_metadata(f"{job.output.path}/{name}").num_rows > 3)[:2]
    with_errors(Path(job.output.path) / first, [0, 2])
    with_errors(Path(job.output.path) / second, [1])
    (Path(job.output.path) / "_batchloom/manifest.json").unlink()
    assert pipelines.run(job).totals["errors"] == 3
    verified(job)
    assert pipelines.run(job, retry_errors=[]).totals["errors"] == 0
    assert parts(job) == whole
    other = select(where=WHERE, keep_columns=("_source", "id", "lang"))
    assert pipelines.run(other).timing["units_computed"] == 0
    fresh = select(output="fresh", where=WHERE, keep_columns=("_source", "id", "lang"))
    pipelines.run(fresh)
    assert parts(other) == parts(fresh)
    assert ids_of(other) == expected()
    verified(other)


def test_parts_and_jobs_without_a_chosen_row_are_there_and_empty(select) -> None:
    job = select(where="id = '1-3'")
    manifest = pipelines.run(job)
    assert ids_of(job) == ["1-3"]
    assert (manifest.totals["rows"], manifest.totals["left_out"]) == (1, 114)
    assert manifest.totals["parts"] > 3
    verified(job)
    nothing = select(output="nothing", where="id = 'x' and lang = 'en'")
    assert pipelines.run(nothing).totals["rows"] == 0
    assert pq.read_table(nothing.output.path).num_rows == 0
    verified(nothing)
    excluded = select(output="excluded", where="lang = 'xx'")
    assert (pipelines.run(excluded).totals["rows"], verified(excluded).num_left_out) == (0, 115)


def test_of_the_rows_of_a_limit_some_are_chosen(select) -> None:
    job = select(sample=0.5, limit=40)
    pipelines.run(job)
    first_rows = {f"{number}-{row}" for number in range(4) for row in range(10)}
    assert ids_of(job) == [row for row in expected(where=False, sample=0.5) if row in first_rows]
    found = verified(job)
    assert found.num_input_rows == 40
    assert found.notes == ["input.limit leaves out 75 of 115 rows."]


def test_the_share_of_errors_is_one_of_the_chosen_rows(select, tmp_path) -> None:
    job = select(where=WHERE)
    table = pa.table({"id": ["x", "y"], "text": ["", None], "lang": ["en"] * 2})
    (tmp_path / "in/lang=xx").mkdir()
    pq.write_table(table, tmp_path / "in/lang=xx/a.parquet")
    job = replace(
        job,
        input=replace(job.input, where="lang = 'xx' or id = '1-1'"),
        limits=replace(job.limits, max_error_rate=0.5),
    )
    with pytest.raises(ErrorLimitError, match="2 of 3 rows failed"):
        pipelines.run(job)


def test_counts_that_do_not_add_up_are_problems(select) -> None:
    job = select(where=WHERE)
    pipelines.run(job)
    path = Path(job.output.path) / ledger.MANIFEST
    manifest = json.loads(path.read_text())
    for totals, settings, words in (
        ({"left_out": 3}, {}, "totals.left_out is 3; its parts leave out"),
        ({}, {"where": None}, "the job has no selection"),
        ({}, {"where": "lang ="}, "job.input.where is not as batchloom wrote it. input.where: at character 7"),
    ):
        changed = {**manifest, "totals": {**manifest["totals"], **totals}}
        changed["job"] = {**manifest["job"], "input": {**manifest["job"]["input"], **settings}}
        path.write_text(json.dumps(changed))
        assert words in "\n".join(pipelines.verify(job.output.path).problems)
