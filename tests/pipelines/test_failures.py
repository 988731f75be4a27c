"""Units that fail are counted, named, and no reason to stop the others."""

import pytest

from batchloom.pipelines.errors import JobError
from batchloom.pipelines.metrics import PartFailed, UnitFailed
from batchloom.pipelines.running.failures import MAX_CAUSES_IN_A_ROW, SHOWN_GROUPS, Failures


def failure(shard: str = "a.parquet", start: int = 0, reason: str = "the store is gone") -> UnitFailed:
    return UnitFailed(shard, start, start + 10, reason)


def test_a_run_without_failures_raises_nothing() -> None:
    Failures().check()


def test_failed_units_are_named_by_shard_and_reason_and_counted() -> None:
    failures = Failures()
    for start in (50, 0, 10, 20):
        failures.add(failure(start=start))
    failures.add(failure("b.parquet", 30, "it has changed"))
    with pytest.raises(JobError) as raised:
        failures.check()
    assert str(raised.value).splitlines() == [
        "5 units failed. All others are done.",
        "  4 units of a.parquet (rows 0-10, 10-20, 20-30, ...): the store is gone",
        "  1 unit of b.parquet (rows 30-40): it has changed",
        "Finished parts are kept, and the output is not closed: the same command computes what is missing.",
    ]


def test_reasons_beyond_those_shown_are_counted() -> None:
    failures = Failures()
    for number in range(SHOWN_GROUPS + 3):
        failures.add(failure(f"{number:02}.parquet"))
    with pytest.raises(JobError, match=r"09\.parquet (.|\n)*and 3 units for other reasons"):
        failures.check()


def test_a_job_ends_when_nothing_succeeds_any_more() -> None:
    failures = Failures()
    for number in range(MAX_CAUSES_IN_A_ROW - 1):
        failures.add(failure(f"{number}.parquet"))
    failures.done()
    for number in range(MAX_CAUSES_IN_A_ROW - 1):
        failures.add(failure(f"{number}.parquet"))
    with pytest.raises(JobError, match="The job was stopped: units failed one after the other"):
        failures.add(failure("last.parquet"))


def test_many_units_of_one_cause_are_no_reason_to_stop() -> None:
    failures = Failures()
    for start in range(0, 10 * 10 * MAX_CAUSES_IN_A_ROW, 10):
        failures.add(failure(start=start))
    with pytest.raises(JobError, match=f"{10 * MAX_CAUSES_IN_A_ROW} units failed. All others are done"):
        failures.check()


def test_parts_that_could_not_be_assembled_are_counted_as_parts() -> None:
    failures = Failures()
    for failed in (failure(), failure(start=10), PartFailed("a.parquet", 0, 40, "the task was lost")):
        failures.add(failed)
    with pytest.raises(
        JobError, match=r"2 units and 1 part failed(.|\n)*  1 part of a\.parquet \(rows 0-40\): the task"
    ):
        failures.check()


def test_parts_that_are_gone_are_not_called_done() -> None:
    failures = Failures()
    failures.add(failure())
    with pytest.raises(
        JobError, match=r"1 unit failed\. And 2 finished parts were removed .* \(x\.parquet, y\.parquet\)\."
    ):
        failures.check(["x.parquet", "y.parquet"])
