"""Usage: what replicas did with their time, whom they waited for, and what helps. It knows no Ray."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields

STARVED_SHARE = 0.2  # of the time since it was ready: less is a pause between two units
STARVED_SECONDS = 5.0  # of all replicas together: less is what the first units take to come
BUSY_SHARE = 0.5  # of a replica's wait: a stage that worked less is not what was waited for
PARALLEL = "give Ray more CPUs (nodes without GPUs will do), or use fewer replicas (engine.replicas.max)"
CURES = {
    "read": (
        "reading",
        f"bring the nodes near to the input, or {PARALLEL}",
    ),
    "tokenize": ("tokenization", PARALLEL),
    "write": ("writing answers", "bring the nodes near to the output, or raise input.rows_per_unit: files are fewer"),
}
"""By stage: what it is called, and what makes it faster."""


@dataclass(frozen=True)
class Usage:
    """Seconds of one replica, or of several together."""

    loading: float = 0.0
    """The model."""
    computing: float = 0.0
    waiting: float = 0.0
    """For units, while there are some that no replica has."""
    overhead: float = 0.0
    """It has units, and its model computes nothing: requests and answers change hands."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    @property
    def total(self) -> float:
        return sum(astuple(self))

    @property
    def ready(self) -> float:
        """Seconds since the model was loaded."""
        return self.total - self.loading

    def shares(self) -> dict[str, float]:
        """Return the share of each kind of time; they add up to 1. Nothing where there was no time."""
        return {one.name: getattr(self, one.name) / self.total for one in fields(self)} if self.total else {}


@dataclass(frozen=True)
class ReplicaUsage:
    """What one replica did with its time."""

    node: str
    """Address of its node; empty where the node is gone."""
    process_id: int
    usage: Usage


class Timesheet:
    """Kept by a replica: what it does with its time, from when it begins to load. Units may be computed side by side.

    A wait counts when its unit has come: one that no unit ends is not for units.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._changing = clock, threading.Lock()
        self._began = clock()
        self._loading: float | None = None
        self._waiting = self._occupied = 0.0
        self._num_units, self._since = 0, 0.0
        """Units that are computed, and since when there are some or none."""

    def ready(self) -> None:
        """Called when the model is loaded."""
        with self._changing:
            self._since = self._clock()
            self._loading = self._since - self._began

    @contextmanager
    def unit(self) -> Iterator[None]:
        """Around the computation of a unit."""
        with self._changing:
            if self._num_units == 0:
                self._waiting += self._turn()
            self._num_units += 1
        try:
            yield
        finally:
            with self._changing:
                self._num_units -= 1
                if self._num_units == 0:
                    self._occupied += self._turn()

    def usage(self, computing: float) -> Usage:
        """Return the account so far; `computing`: seconds that the model computed."""
        with self._changing:
            now = self._clock()
            loading = now - self._began if self._loading is None else self._loading
            occupied = self._occupied + (now - self._since if self._num_units else 0.0)
            return Usage(loading, computing, self._waiting, max(0.0, occupied - computing))

    def _turn(self) -> float:
        before, self._since = self._since, self._clock()
        return self._since - before


def starved_by(usage: Usage, stage_seconds: Mapping[str, float], num_replicas: int) -> str | None:
    """Return the stage that replicas waited for, of CURES; None where they hardly waited, or no stage was that busy.

    `stage_seconds`: what all units took in each stage together.
    """
    if usage.waiting < STARVED_SECONDS or usage.waiting < STARVED_SHARE * usage.ready:
        return None
    stage = max(CURES, key=lambda name: stage_seconds.get(name, 0.0))
    is_busy = stage_seconds.get(stage, 0.0) >= BUSY_SHARE * usage.waiting / max(1, num_replicas)
    return stage if is_busy else None


def hint(usage: Usage, stage: str) -> str:
    """Return in words by which stage replicas were starved, and what helps."""
    noun, cure = CURES[stage]
    return f"starved by {noun}: replicas waited {usage.waiting / usage.ready:.0%} of their time for units; {cure}"
