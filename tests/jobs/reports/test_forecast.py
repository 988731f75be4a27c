"""`plan --sample`: what some rows tell of all."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchloom.pipelines.running.forecast import PLACES, Forecast, places

Run = Callable[..., Any]


def job_of(shards: list[int]) -> Any:
    made = [
        SimpleNamespace(num_rows=rows, source=SimpleNamespace(name=f"{number}", identity="v"))
        for number, rows in enumerate(shards)
    ]
    return SimpleNamespace(shards=made, num_rows=sum(shards))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40), st.integers(1, 3000))
def test_places_are_of_the_input_and_do_not_overlap(shards: list[int], num_rows: int) -> None:
    spans = list(places(job_of(shards), num_rows))
    rows = [(span.shard, row) for span in spans for row in range(span.start, span.stop)]
    assert spans
    assert len(spans) < PLACES + len(shards)
    assert len(set(rows)) == len(rows)
    assert min(num_rows, sum(shards)) - PLACES < len(rows) <= num_rows
    assert all(0 <= row < shards[int(shard)] for shard, row in rows)


def test_places_are_spread_over_all_shards() -> None:
    spans = list(places(job_of([100] * 32), 160))
    assert [span.shard for span in spans] == [str(number) for number in range(0, 32, 2)]
    assert {span.num_rows for span in spans} == {10}
    (only,) = places(job_of([3]), 1)
    assert (only.start, only.stop) == (0, 1)
    assert sum(span.num_rows for span in places(job_of([70, 30]), 100)) == 100


def test_a_count_is_scaled_to_all_rows() -> None:
    forecast = Forecast(
        num_rows=1000, num_looked_at=50, num_chosen=50, num_input_tokens=500, num_asked_tokens=400,
        num_truncated_tokens=0, errors_by_kind={}, seconds=0.1,
    )  # fmt: skip
    assert forecast.expected(500) == 10_000
    assert replace(forecast, num_looked_at=0).expected(0) == 0


@pytest.mark.parametrize("where", [None, "id < '<b>2'"])
def test_a_sample_of_all_rows_tells_what_the_run_found(
    batchloom: Run, finished: Any, tmp_path: Path, where: str
) -> None:
    chosen = ["--set", f"input.where={where}"] if where else []
    said = batchloom("plan", finished.job, "--output", tmp_path, "--sample", "100", "--json", *chosen)
    assert said.code == 0, said.err
    forecast = said.json[0]["forecast"]
    assert forecast["num_looked_at"] == forecast["num_rows"] == 30
    if where:
        assert 0 < forecast["num_chosen"] < 30
        return
    last = finished.said.json[-1]
    assert forecast["num_input_tokens"] == last["totals"]["input_tokens"]
    assert forecast["errors_by_kind"] == last["errors_by_kind"]
    words = batchloom("plan", finished.job, "--output", tmp_path, "--sample", "100").out
    assert re.search(r"^Sample +30 rows of spread places, in ", words, re.MULTILINE)
    assert re.search(r"^Errors +about 3 rows \(1 empty_text, 1 null_text, 1 too_long\)$", words, re.MULTILINE)
