"""How long a job may be quiet follows from how fast its units finish."""

from dataclasses import dataclass

from batchloom.pipelines.watching.pace import LONGEST_PAUSE, LONGEST_QUIET, SLACK, Pace


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def spoken(pace: Pace, clock: Clock, seconds: float) -> list[float]:
    """The seconds of a silence in which a word came."""
    start, told = clock.now, []
    while clock.now - start < seconds:
        clock.now += 1.0
        if pace.is_due():
            told.append(clock.now - start)
    return told


def test_the_first_word_comes_in_time_and_the_next_ones_ever_later() -> None:
    clock = Clock()
    assert spoken(Pace(15.0, clock), clock, 220.0) == [30.0, 90.0, 210.0]


def test_pauses_between_words_stop_growing() -> None:
    clock = Clock()
    told = spoken(Pace(15.0, clock), clock, 10 * LONGEST_PAUSE)
    assert told[-1] - told[-2] == LONGEST_PAUSE


def test_slow_units_are_no_silence() -> None:
    clock = Clock()
    pace = Pace(15.0, clock)
    for _ in range(3):
        clock.now += 100.0
        pace.finished()
    assert spoken(pace, clock, 2 * SLACK * 100.0) == [SLACK * 100.0]


def test_units_that_finish_two_by_two_are_measured_by_the_longer_pause() -> None:
    clock = Clock()
    pace = Pace(15.0, clock)
    for _ in range(8):
        clock.now += 60.0
        pace.finished()
        pace.finished()
    assert spoken(pace, clock, SLACK * 60.0 - 1) == []


def test_start_up_is_not_a_pause_between_units() -> None:
    clock = Clock()
    pace = Pace(15.0, clock)
    clock.now = 200.0
    pace.finished()
    assert spoken(pace, clock, 16.0) == [15.0]


def test_however_slow_units_are_a_word_comes() -> None:
    clock = Clock()
    pace = Pace(15.0, clock)
    for _ in range(2):
        clock.now += 10 * LONGEST_QUIET
        pace.finished()
    assert spoken(pace, clock, LONGEST_QUIET) == [LONGEST_QUIET]
    assert pace.quiet_seconds == LONGEST_QUIET
