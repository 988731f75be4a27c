"""The row that ends processes is found, whatever else ends them, and every other row is answered."""

import random

import pytest

from batchloom.pipelines.watching.attempts import MAX_KILLERS, ROW_DEATHS, SHARED_DEATHS, Attempt, Attempts


def compute(attempts: Attempts, attempt: Attempt, kills: set[int], num_rows: int) -> set[int] | None:
    """What a replica does with an attempt: the rows that it answers, or None where its process dies."""
    if attempt.spans is None:
        if kills:
            attempts.died(None)
            return None
        return set(range(num_rows))
    answered: set[int] = set()
    for start, stop in attempt.spans:
        if kills & set(range(start, stop)):
            attempts.died(start)
            return None
        attempts.answered(start)
        answered |= set(range(start, stop))
    return answered


def run(num_rows: int, kills: set[int]) -> tuple[Attempt, set[int], int]:
    attempts, num_deaths = Attempts(num_rows, max_attempts=5), 0
    while True:
        attempt = attempts.next()
        if attempt.failure is not None:
            return attempt, set(), num_deaths
        answered = compute(attempts, attempt, kills, num_rows)
        if answered is not None:
            return attempt, answered, num_deaths
        num_deaths += 1
        assert num_deaths < 500, "never ends"


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8, 100, 1024])
@pytest.mark.parametrize("seed", range(4))
def test_the_row_that_kills_is_found_and_all_others_are_answered(num_rows: int, seed: int) -> None:
    """Property: the killer is named, each other row is answered once, in as many deaths as halving takes."""
    killer = random.Random(seed).randrange(num_rows)
    attempt, answered, num_deaths = run(num_rows, {killer})
    assert list(attempt.killers) == [killer]
    assert answered == set(range(num_rows)) - {killer}
    spans = attempt.spans or []
    assert sum(stop - start for start, stop in spans) == len(answered)
    assert num_deaths <= SHARED_DEATHS + (num_rows - 1).bit_length() + ROW_DEATHS


def test_two_rows_that_kill_are_both_found() -> None:
    attempt, answered, _ = run(64, {3, 40})
    assert sorted(attempt.killers) == [3, 40]
    assert answered == set(range(64)) - {3, 40}


def test_a_unit_with_too_many_killers_fails() -> None:
    attempt, _, _ = run(16, set(range(16)))
    assert attempt.failure is not None
    assert f"More than {MAX_KILLERS} of its rows" in attempt.failure


def test_a_unit_that_was_beside_the_killer_is_answered_whole_and_alone() -> None:
    innocent = Attempts(10, max_attempts=5)
    for _ in range(SHARED_DEATHS):
        assert innocent.next().spans is None
        innocent.died(None)
    assert innocent.next() == Attempt([(0, 10)])


def test_rows_that_kill_only_together_are_answered_apart() -> None:
    """Memory that half of a unit fits into."""
    attempts = Attempts(8, max_attempts=5)
    for _ in range(SHARED_DEATHS):
        attempts.died(None)
    while (spans := attempts.next().spans) is not None and spans[0][1] - spans[0][0] > 2:
        attempts.died(spans[0][0])
    while any(stop - start > 2 for start, stop in attempts.next().spans or []):
        for start, stop in attempts.next().spans or []:
            if stop - start > 2:
                attempts.died(start)
                break
            attempts.answered(start)
    last = attempts.next()
    assert sorted(last.spans or []) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert not last.killers
    assert last.failure is None


def test_lost_nodes_blame_no_row_and_end_in_a_failure() -> None:
    attempts = Attempts(10, max_attempts=3)
    for _ in range(3):
        assert attempts.next() == Attempt()
        attempts.lost()
    assert "3 replicas in a row were lost (limits.max_unit_attempts)" in str(attempts.next().failure)


def test_a_node_lost_while_a_row_is_alone_is_no_proof() -> None:
    attempts = Attempts(1, max_attempts=5)
    attempts.died(None)
    attempts.died(None)
    attempts.next()
    attempts.died(0)
    attempts.lost()
    assert attempts.next() == Attempt([(0, 1)])
    attempts.died(0)
    assert attempts.next() == Attempt([], (0,))
