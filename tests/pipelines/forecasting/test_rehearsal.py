"""What rounds of a rehearsal mean for all rows, and which rounds there are."""

from dataclasses import replace

import pytest

from batchloom.pipelines.forecasting.expected import Expected
from batchloom.pipelines.forecasting.rehearsal import UNIT_SECONDS, Rehearsal, Round
from batchloom.pipelines.forecasting.rehearsing import FIRST_ROUND, MOST_ROWS, _drawn, _is_wanted


def round_of(num_rows: int, seconds: float, padded: float = 1.0) -> Round:
    tokens = {"engine_prompt_tokens": 10 * num_rows, "engine_padded_tokens": 10 * num_rows * padded}
    return Round(num_rows=num_rows, seconds=seconds, measures=tokens)


REHEARSAL = Rehearsal(
    machine="a", dtype="float32", num_rows=336, startup_seconds=10, loading_seconds=4, all_rows=10_000, num_units=10,
    rounds=[round_of(16, 5.0), round_of(64, 8.4), round_of(256, 27.6)], output_tokens=Expected(0, 0), errors={},
    at_length=Expected(0, 0), stage_seconds_a_row=0.02, num_cpus=2, shares_cpus=True,
)  # fmt: skip


def test_what_every_round_has_at_its_ends_cancels_out() -> None:
    assert REHEARSAL.seconds_a_row == pytest.approx(0.1), "and not 27.6 / 256"
    assert replace(REHEARSAL, rounds=REHEARSAL.rounds[:2]).seconds_a_row == 8.4 / 64, "the first round warms up"
    slower_later = [*REHEARSAL.rounds[:2], round_of(256, 64.0)]
    assert replace(REHEARSAL, rounds=slower_later).seconds_a_row == 64 / 256, "no round ends before it begins"
    faster_later = [*REHEARSAL.rounds[:2], round_of(256, 8.0)]
    assert replace(REHEARSAL, rounds=faster_later).seconds_a_row == 8 / 256, "noise makes no negative time"


def test_other_stages_take_their_time_from_a_replica_on_cpus_and_run_beside_a_gpu() -> None:
    assert REHEARSAL.compute_seconds(1) == pytest.approx(10_000 * (0.1 + 0.02 / 2) + 10 * UNIT_SECONDS)
    beside = replace(REHEARSAL, shares_cpus=False)
    assert beside.compute_seconds(1) == pytest.approx(10_000 * 0.1)
    starved = replace(beside, stage_seconds_a_row=0.6)
    assert starved.compute_seconds(1) == pytest.approx(10_000 * 0.3), "tokenization is slower than the replica"
    tiny_units = replace(beside, num_units=100_000)
    assert tiny_units.compute_seconds(1) == pytest.approx(100_000 * UNIT_SECONDS), "the driver is slower than both"


def test_replicas_share_units_and_not_rows() -> None:
    alone = REHEARSAL.compute_seconds(1)
    assert REHEARSAL.compute_seconds(4) == pytest.approx(alone * 3 / 10), "one of them has three units of ten"
    assert REHEARSAL.compute_seconds(16) == pytest.approx(alone / 10), "six have nothing to do"
    assert REHEARSAL.total_seconds(16) == pytest.approx(10 + alone / 10)
    assert replace(REHEARSAL, num_units=0, all_rows=0.0).total_seconds(4) == 10


def test_padding_is_that_of_all_rounds() -> None:
    assert replace(REHEARSAL, rounds=[round_of(16, 1, 1.5), round_of(48, 1, 1.1)]).padding == pytest.approx(1.2)
    assert replace(REHEARSAL, rounds=[Round(num_rows=1, seconds=1, measures={})]).padding == 1


@pytest.mark.parametrize("num_rows", [1, 15, 16, 31, 32, 90, 1359, 1360, 5000])
def test_rounds_grow_and_share_no_row(num_rows: int) -> None:
    rounds = list(_drawn(num_rows, MOST_ROWS))
    rows = [row for one in rounds for row in one]
    assert len(rows) == len(set(rows)) == min(num_rows, MOST_ROWS)
    assert set(rows) <= set(range(num_rows))
    if num_rows >= MOST_ROWS:
        assert [len(one) for one in rounds] == [16, 64, 256, 1024]
    assert all(len(one) >= FIRST_ROUND for one in rounds) or len(rounds) == 1
    assert list(_drawn(num_rows, MOST_ROWS)) == rounds, "a second plan computes the same rows"


def test_rounds_end_when_one_took_long_enough_or_the_next_would_take_too_long() -> None:
    assert _is_wanted(round_of(16, 1.0), 64)
    assert not _is_wanted(round_of(256, 12.0), 1024)
    assert not _is_wanted(round_of(16, 9.0), 1024)
