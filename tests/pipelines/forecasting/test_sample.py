"""A sample's rows are rows of the input, in both ways of looking: at all of it, and at places."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom import pipelines
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import InputError
from batchloom.pipelines.forecasting import places
from batchloom.pipelines.forecasting.forecast import Forecast
from batchloom.pipelines.forecasting.sample import Sample
from batchloom.pipelines.planning.job_plan import JobPlan

MakeJob = Callable[..., JobConfig]


@pytest.fixture(params=["all is read", "places are read"])
def plan(
    request: pytest.FixtureRequest, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., JobPlan]:
    """A job over 300 texts in four files; row r of file f says its own place, and is as long as it says."""
    if request.param == "places are read":
        monkeypatch.setattr(places, "MOST_BYTES", 0)
    folder = tmp_path / "numbered"
    folder.mkdir()
    for file in range(4):
        texts = [f"{file} {row} " + "word " * (row % 20) for row in range(75)]
        pq.write_table(pa.table({"text": texts}), folder / f"{file}.parquet", row_group_size=20)

    def make(where: str | None = None, **task_options: str) -> JobPlan:
        job = make_job(paths=(str(folder),), task_options=task_options)
        job = replace(job, limits=replace(job.limits, storage_patience=1.0))
        return pipelines.plan(replace(job, input=replace(job.input, where=where)))

    return make


@pytest.mark.parametrize("where", [None, "text like '2 %' or text like '% 7%'"])
def test_each_row_lies_where_its_span_says(plan: Callable[..., JobPlan], where: str | None) -> None:
    sample = Sample.of(plan(where), 60)
    texts = sample.rows["text"].to_pylist()
    assert len(texts) == len(sample.spans)
    assert len(texts) == 60 if where is None else 0 < len(texts) <= 60
    for text, span in zip(texts, sample.spans, strict=True):
        file, row, *_ = text.split()
        assert (span.shard, span.start, span.stop) == (f"{file}.parquet", int(row), int(row) + 1)
    work = sample.work([5, 2])
    assert work.rows["text"].to_pylist() == [texts[5], texts[2]]
    assert [work.unit.row(number) for number in (0, 1)] == [
        (sample.spans[number].shard, sample.spans[number].start) for number in (5, 2)
    ]


def test_what_is_chosen_is_expected_of_all(plan: Callable[..., JobPlan]) -> None:
    sample = Sample.of(plan("text like '2 %'"), 60)
    said = sample.chosen
    assert abs(said.total - 75) <= max(2 * said.standard_error, 1e-9)
    assert sample.expected(np.ones(sample.rows.num_rows)).total == pytest.approx(said.total)


def test_a_forecast_of_all_rows_is_exact(plan: Callable[..., JobPlan]) -> None:
    job = plan()
    every, some = (Forecast.of(job, Sample.of(job, rows)) for rows in (300, 80))
    assert every.input_tokens.standard_error == every.chosen.standard_error == 0
    assert some.input_tokens.standard_error > 0
    assert abs(some.input_tokens.total - every.input_tokens.total) < 4 * some.input_tokens.standard_error
    assert every.cpu_seconds_a_row > 0


def test_a_forecast_counts_what_answers_begin_with(plan: Callable[..., JobPlan]) -> None:
    """The texts differ, so each has one request."""
    plain = Forecast.of(plan(), Sample.of(plan(), 300))
    begun = plan(answer_prefix="{text}")
    prefixed = Forecast.of(begun, Sample.of(begun, 300))
    around = 2  # special tokens of the text; and the forced first token stands before a prefix
    for before, now in ((plain.input_tokens, prefixed.input_tokens), (plain.asked_tokens, prefixed.asked_tokens)):
        assert now.total == 2 * before.total - (around - 1) * 300


def test_a_sample_without_rows_expects_none(plan: Callable[..., JobPlan]) -> None:
    job = plan("text = 'nobody says so'")
    sample = Sample.of(job, 60)
    assert sample.rows.num_rows == 0
    forecast = Forecast.of(job, sample)
    assert forecast.input_tokens.total == forecast.chosen.total == 0
    assert forecast.errors == {}


def test_an_input_that_cannot_be_read_is_told(plan: Callable[..., JobPlan], tmp_path: Path) -> None:
    job = plan()
    (tmp_path / "numbered" / "2.parquet").unlink()
    with pytest.raises(InputError, match=r"2\.parquet"):
        Sample.of(job, 60)
