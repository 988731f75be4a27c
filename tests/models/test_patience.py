"""Calls are tried again for as long as there is a point in it, at random intervals."""

import time
from types import SimpleNamespace

import pytest

from batchloom.models import patience as module
from batchloom.models.patience import GaveUpError, Patience, Waiting, within
from batchloom.models.trouble import Trouble


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Sleeping takes no time; the list holds how long each sleep would have been."""
    slept: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append))
    return slept


class Failing:
    """Raises each error in turn, then returns "done"."""

    def __init__(self, *errors: Exception, each: int = 1) -> None:
        self.left = list(errors) * each
        self.num_calls = 0

    def __call__(self) -> str:
        self.num_calls += 1
        if self.left:
            raise self.left.pop(0)
        return "done"


def test_trouble_that_passes_is_waited_for(clock: list[float]) -> None:
    renewed: list[bool] = []
    attempt = Failing(TimeoutError(), PermissionError("403"), ConnectionResetError(), FileNotFoundError("404"))
    assert Patience().call(attempt, is_local=False, num_bytes=None, before_retry=lambda: renewed.append(True)) == "done"
    assert len(clock) == len(renewed) == 4


@pytest.mark.parametrize("error", [TimeoutError("t"), PermissionError("denied")])
def test_an_outage_of_two_minutes_is_survived_and_one_without_end_is_not(clock: list[float], error) -> None:
    def until(end: float) -> str:
        if sum(clock) < end:
            raise error
        return "done"

    assert Patience().call(lambda: until(120), num_bytes=None) == "done"
    assert sum(clock) < 120 + module.LONGEST_WAIT
    clock.clear()
    with pytest.raises(GaveUpError, match=r"\(tried \d+ times in 300 s\)") as gave_up:
        Patience().call(lambda: until(10_000), num_bytes=None)
    assert gave_up.value.error is error
    assert sum(clock) == pytest.approx(300)


def test_a_refusal_where_nothing_has_succeeded_yet_is_told_within_seconds(clock: list[float]) -> None:
    with pytest.raises(GaveUpError, match="PermissionError: wrong key") as gave_up:
        Patience().call(Failing(PermissionError("wrong key"), each=1000), is_known=False, num_bytes=None)
    assert gave_up.value.trouble is Trouble.DOUBTFUL
    assert sum(clock) == pytest.approx(Patience().doubtful_seconds)


def test_what_lasts_is_not_tried_again(clock: list[float]) -> None:
    attempt = Failing(ValueError("no such option"))
    with pytest.raises(GaveUpError, match=r"^ValueError: no such option$"):
        Patience().call(attempt, num_bytes=None)
    assert attempt.num_calls == 1
    assert clock == []


@pytest.mark.usefixtures("clock")
def test_no_patience_is_one_attempt() -> None:
    attempt = Failing(TimeoutError())
    with pytest.raises(GaveUpError):
        Patience(seconds=0).call(attempt, num_bytes=None)
    assert attempt.num_calls == 1


def test_waits_double_up_to_a_limit_and_differ_between_workers(clock: list[float]) -> None:
    first = Waiting(Patience(seconds=1e6))
    for _ in range(40):
        first.after(TimeoutError())
    for number, seconds in enumerate(clock):
        longest = min(module.FIRST_WAIT * 2**number, module.LONGEST_WAIT)
        assert longest / 2 <= seconds <= longest
    before = list(clock)
    clock.clear()
    second = Waiting(Patience(seconds=1e6))
    for _ in range(40):
        second.after(TimeoutError())
    assert clock != before


def test_a_call_that_hangs_is_abandoned() -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        within(0.05, lambda: time.sleep(30))
    assert time.monotonic() - begun < 10
    assert within(30, lambda: "done") == "done"
    with pytest.raises(KeyError):
        within(30, lambda: {}["x"])


def test_an_attempt_that_hangs_is_followed_by_another() -> None:
    hanging = [True]

    def attempt() -> str:
        if hanging.pop() if hanging else False:
            time.sleep(30)
        return "done"

    assert Patience(timeout=0.05).call(attempt, num_bytes=0) == "done"
