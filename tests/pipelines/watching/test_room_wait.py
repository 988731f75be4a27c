"""A wait for room is told once, ends with room, and has a limit."""

import pytest

from batchloom.pipelines.watching.room_wait import RoomWait


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_wait_is_told_once_and_again_when_room_is_lost_again(clock: Clock) -> None:
    wait = RoomWait(minutes=1, clock=clock)
    told = []
    for has_room in (True, False, False, True, False):
        wait.look(has_room)
        told.append(wait.is_news())
    assert told == [False, True, False, False, True]


def test_only_a_wait_without_a_pause_reaches_the_limit(clock: Clock) -> None:
    wait = RoomWait(minutes=1, clock=clock)
    wait.look(has_room=True)
    assert (wait.seconds_left, wait.is_over) == (None, False)
    for second in range(200):
        clock.now = float(second)
        wait.look(has_room=second == 50)
        assert wait.is_over == (second >= 111), second
    assert wait.seconds_left == 0


def test_no_minutes_are_no_wait(clock: Clock) -> None:
    wait = RoomWait(minutes=0, clock=clock)
    assert not wait.is_over
    wait.look(has_room=False)
    assert wait.is_over
