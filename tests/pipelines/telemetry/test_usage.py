"""Replicas' time is accounted for to the second, and a hint comes only where a stage was waited for."""

from dataclasses import dataclass

import pytest

from batchloom.pipelines.telemetry.usage import STARVED_SECONDS, STARVED_SHARE, Timesheet, Usage, hint, starved_by


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_every_second_is_loading_computing_waiting_or_overhead() -> None:
    clock = Clock()
    sheet = Timesheet(clock)
    clock.now = 3.0
    assert sheet.usage(0.0) == Usage(loading=3.0)  # it has not ended
    clock.now = 10.0
    sheet.ready()
    clock.now = 14.0
    first, second = sheet.unit(), sheet.unit()
    with first:
        clock.now = 16.0
        with second:  # side by side
            clock.now = 20.0
        clock.now = 24.0
        assert sheet.usage(9.0) == Usage(loading=10.0, computing=9.0, waiting=4.0, overhead=1.0)
    clock.now = 30.0
    assert sheet.usage(9.0).waiting == 4.0  # whether this is a wait for a unit is not known yet
    with sheet.unit():
        clock.now = 31.0
    usage = sheet.usage(9.5)
    assert usage == Usage(loading=10.0, computing=9.5, waiting=10.0, overhead=1.5)
    assert usage.total == clock.now
    assert usage.ready == 21.0
    assert sum(usage.shares().values()) == pytest.approx(1.0)
    assert Usage().shares() == {}
    assert usage + Usage(waiting=5.0) == Usage(10.0, 9.5, 15.0, 1.5)


WAITED = Usage(loading=60.0, computing=50.0, waiting=50.0)


@pytest.mark.parametrize(
    ("usage", "seconds", "num_replicas", "stage"),
    [
        (WAITED, {"read": 20.0, "tokenize": 80.0, "write": 5.0}, 1, "tokenize"),
        (WAITED, {"read": 81.0, "tokenize": 80.0, "write": 5.0}, 1, "read"),
        (WAITED, {"read": 20.0, "tokenize": 30.0, "write": 90.0, "compute": 500.0}, 1, "write"),
        (Usage(computing=90.0, waiting=10.0), {"tokenize": 900.0}, 1, None),  # busy stages, busy replicas
        (Usage(loading=900.0, computing=90.0, waiting=10.0), {"tokenize": 900.0}, 1, None),  # loading is no wait
        (Usage(computing=1.0, waiting=4.0), {"tokenize": 9.0}, 1, None),  # of a job of seconds: the first units
        (WAITED, {"read": 1.0, "tokenize": 2.0}, 1, None),  # nobody was busy: it waited for something else
        (Usage(computing=500.0, waiting=500.0), {"tokenize": 40.0}, 10, "tokenize"),  # ten waited 50 s each
        (Usage(computing=500.0, waiting=500.0), {"tokenize": 20.0}, 10, None),
        (Usage(), {}, 0, None),
    ],
)
def test_a_stage_starves_replicas_where_they_waited_and_it_was_busy(usage, seconds, num_replicas, stage) -> None:
    assert starved_by(usage, seconds, num_replicas) == stage


def test_the_limits_of_a_hint_are_where_they_are_said_to_be() -> None:
    computing = STARVED_SECONDS * (1 - STARVED_SHARE) / STARVED_SHARE
    busy = {"tokenize": 1000.0}
    assert starved_by(Usage(computing=computing, waiting=STARVED_SECONDS), busy, 1) == "tokenize"
    assert starved_by(Usage(computing=computing * 1.01, waiting=STARVED_SECONDS), busy, 1) is None
    assert starved_by(Usage(computing=0.0, waiting=STARVED_SECONDS * 0.99), busy, 1) is None


def test_a_hint_names_the_stage_how_much_was_lost_and_what_to_change() -> None:
    assert hint(WAITED, "tokenize") == (
        "starved by tokenization: replicas waited 50% of their time for units; give Ray more CPUs (nodes without GPUs "
        "will do), or use fewer replicas (engine.replicas.max)"
    )
