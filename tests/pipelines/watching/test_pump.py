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


@pytest.mark.parametrize("yields_on", [True, False])
def test_an_iterator_that_never_heard_of_the_stop_is_stopped(monkeypatch, yields_on) -> None:
    """An exception that is raised in the callback of a weak reference is printed, and goes no further."""
    monkeypatch.setattr("batchloom.pipelines.watching.pump.ASK_SECONDS", 20.0 if yields_on else 0.1)
    heard: list[BaseException] = []

    def deaf():
        yield 0
        try:
            while True:
                time.sleep(0.01)
        except Stopped as error:
            heard.append(error)
        try:
            while True:
                time.sleep(0.01)
                if yields_on:
                    yield 1
        finally:
            heard.append(Stopped())

    started = time.monotonic()
    with Pump(deaf) as pump:
        assert pump.take(5.0) == 0
    assert not pump.is_running
    assert len(heard) == 2
    assert time.monotonic() - started < 15
