"""Each second and each token is counted once."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from batchloom.pipelines.telemetry import measures
from batchloom.pipelines.telemetry.measures import Increments, add, padding, stage_seconds, timed


def test_increments_add_up_whoever_asks() -> None:
    done = {"tokens": 0}

    def work() -> dict[str, float]:
        done["tokens"] += 1
        return increments.take()

    increments = Increments(lambda: done)
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: work(), range(200)))
    assert sum(one["tokens"] for one in told) + increments.take()["tokens"] == 200
    assert increments.take() == {"tokens": 0}


def test_what_is_timed_is_the_making_and_not_the_use(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(measures.time, "perf_counter", lambda: now)

    def made():
        nonlocal now
        for number in range(3):
            now += 1.0
            yield number

    taken = []
    for number, seconds in timed(made()):
        taken.append((number, seconds))
        now += 100.0
    assert taken == [(0, 1.0), (1, 1.0), (2, 1.0)]


def test_sums_are_kept_and_read_by_stage() -> None:
    sums: dict[str, float] = {}
    for _ in range(2):
        add(sums, {"read_seconds": 1.5, "engine_prompt_tokens": 10, "engine_padded_tokens": 12})
    add(sums, {"engine_busy_seconds": 4.0})
    assert stage_seconds(sums) == {"read": 3.0, "compute": 4.0}
    assert padding(sums) == 1.2
    assert padding({}) is None
