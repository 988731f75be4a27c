"""A job over files of other forms than Parquet: the same answers, each row once, whatever interrupts it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom import pipelines
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import OutputError
from batchloom.pipelines.metrics import Event, PartDone
from batchloom.pipelines.planning.footers import Footers
from tests.forms import write

pytestmark = pytest.mark.usefixtures("ray_cluster")


def interrupt(event: Event) -> None:
    if isinstance(event, PartDone):
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def expected() -> dict[str, list[str]]:
    """The answers to the first form that is tried."""
    return {}


@pytest.mark.parametrize("form", [".parquet", ".jsonl", ".jsonl.gz", ".csv", ".txt.zst"])
def test_a_job_interrupted_three_times_answers_each_row_of_any_form_once(
    make_job: Callable[..., JobConfig], tmp_path, make_sentences, expected, monkeypatch, form
) -> None:
    monkeypatch.setattr("batchloom.pipelines.formats.scan.ROW_GROUP_BYTES", 1500)
    folder = tmp_path / "in"
    folder.mkdir()
    for name, first, num_rows in (("a", 0, 40), ("b", 40, 9)):
        table = pa.table({"id": range(first, first + num_rows), "text": make_sentences(num_rows, seed=first)})
        write(table, folder, name, form)
    (folder / "README.md").touch()
    job = make_job(paths=(str(folder),), rows_per_unit=3)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            pipelines.run(job, interrupt)
    with monkeypatch.context() as patched:
        patched.setattr(Footers, "read", lambda *_: pytest.fail("the input was gone through before"))
        pipelines.run(job)
        verification = pipelines.verify(job.output.path)
    assert verification.ok, verification.problems
    assert verification.num_input_rows == verification.num_rows == 49
    again = replace(job, output=replace(job.output, path=str(tmp_path / "again")))
    pipelines.run(again)
    assert content(again) == content(job)
    rows = pq.read_table(job.output.path)
    answers = rows.sort_by("id")["summary_text"] if "id" in rows.column_names else rows["summary_text"]
    assert sorted(answers.to_pylist()) == expected.setdefault("answers", sorted(answers.to_pylist()))


def content(job: JobConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(job.output.path).glob("*.parquet")}


def test_a_trial_answers_the_first_rows_of_each_file_and_verify_knows_of_the_others(make_job) -> None:
    job = make_job()
    whole = replace(job, output=replace(job.output, path=f"{job.output.path}-whole"))
    trial = replace(job, input=replace(job.input, limit=31))
    pipelines.run(trial)
    ids = sorted(pq.read_table(trial.output.path)["id"].to_pylist())
    assert ids == [*range(11), *range(40, 50), *range(65, 75)]  # of 40, 25 and 10 rows
    verification = pipelines.verify(trial.output.path)
    assert verification.ok, verification.problems
    assert (verification.num_rows, verification.num_input_rows) == (31, 31)
    assert verification.notes == ["input.limit leaves out 44 of 75 rows."]
    assert pipelines.plan(replace(whole, output=trial.output)).num_rows == 75  # by the footers that the trial kept
    with pytest.raises(OutputError, match=r"input\.limit was 31, is null"):
        pipelines.run(replace(whole, output=trial.output))
