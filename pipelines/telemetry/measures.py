"""Measures: figures of a run that are summed up. They change no answer, and each second or token is counted once."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

Made = TypeVar("Made")

STAGES = {
    "read": "read_seconds",
    "tokenize": "tokenize_seconds",
    "compute": "engine_busy_seconds",
    "write": "write_seconds",
    "assemble": "assemble_seconds",
}
"""The measure that has each stage's seconds, which are added up over workers and replicas."""
PROMPT_TOKENS, PADDED_TOKENS = "engine_prompt_tokens", "engine_padded_tokens"


def stage_seconds(measures: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of each stage."""
    return {stage: measures[name] for stage, name in STAGES.items() if name in measures}


def padding(measures: Mapping[str, float]) -> float | None:
    """Return computed over real prompt tokens: 1.0 is no padding. None where nothing was computed."""
    real = measures.get(PROMPT_TOKENS, 0)
    return measures.get(PADDED_TOKENS, 0) / real if real else None


def add(sums: dict[str, float], measures: Mapping[str, float]) -> None:
    """Add measures to sums."""
    for name, value in measures.items():
        sums[name] = sums.get(name, 0) + value


def timed(made: Iterable[Made]) -> Iterator[tuple[Made, float]]:
    """Yield what is made, each with the seconds that it took."""
    items = iter(made)
    while True:
        watch = Stopwatch()
        try:
            with watch.running():
                item = next(items)
        except StopIteration:
            return
        yield item, watch.seconds


class Increments:
    """Tells by how much figures that only grow have grown since this was last asked; on any thread."""

    def __init__(self, figures: Callable[[], Mapping[str, float]]) -> None:
        self._figures, self._told = figures, dict[str, float]()
        self._telling = threading.Lock()

    def take(self) -> dict[str, float]:
        with self._telling:
            now = dict(self._figures())
            since = {name: value - self._told.get(name, 0) for name, value in now.items()}
            self._told = now
            return since


class Stopwatch:
    """Adds up the seconds inside of `running`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
