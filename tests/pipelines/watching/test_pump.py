"""A pump hands on what an iterator yields and raises, and stops it where it stands."""

import time

import pytest

from batchloom.pipelines.watching.pump import Pump, Stopped


def test_items_come_in_order_and_then_the_end() -> None:
    with Pump(lambda: iter("abc")) as pump:
        assert [pump.take(5.0) for _ in range(3)] == ["a", "b", "c"]
        with pytest.raises(StopIteration):
            pump.take(5.0)


def test_what_the_iterator_raises_is_raised_here() -> None:
    def broken():
        yield 1
        raise ValueError("broken")

    with Pump(broken) as pump:
        assert pump.take(5.0) == 1
        with pytest.raises(ValueError, match="broken"):
            pump.take(5.0)


def test_an_iterator_that_waits_for_ever_is_stopped_and_cleans_up() -> None:
    ended: list[BaseException] = []

    def endless():
        try:
            yield 1
            while True:
                time.sleep(0.01)
        except BaseException as error:
            ended.append(error)
            raise

    with Pump(endless) as pump:
        assert pump.take(5.0) == 1
        assert pump.take(0.05) is None
    assert isinstance(ended[0], Stopped)
