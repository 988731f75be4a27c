"""Pace tells how long a job may be quiet before it says why: from how fast units finished so far. It knows no Ray."""

import time
from collections import deque
from collections.abc import Callable

WINDOW = 16  # pauses between units that are remembered
START_UP = 2.0  # times the shortest silence, for Ray, processes and the model
SLACK = 1.5  # of the longest of them is no surprise
LONGEST_QUIET = 300.0  # seconds, however slow units are
GROWTH = 2.0  # each word about the same silence comes after a pause so many times as long
LONGEST_PAUSE = 600.0  # seconds between two words


class Pace:
    """Call `finished` with every unit; `is_due` is true each time that a word about the silence is due."""

    def __init__(self, quiet_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`quiet_seconds` may always pass without a word, and START_UP times as many before the first unit."""
        self._quiet_seconds, self._clock = quiet_seconds, clock
        self._pauses: deque[float] = deque(maxlen=WINDOW)
        self._any_finished = False
        self._since = clock()
        self._wait(START_UP * quiet_seconds)

    @property
    def quiet_seconds(self) -> float:
        """Seconds since the last unit finished, or since the start."""
        return self._clock() - self._since

    def finished(self) -> None:
        now = self._clock()
        if self._any_finished:
            self._pauses.append(now - self._since)
        self._any_finished, self._since = True, now
        expected = SLACK * max(self._pauses, default=0.0)
        self._wait(max(self._quiet_seconds, min(expected, LONGEST_QUIET)))

    def is_due(self) -> bool:
        """Return whether the silence is longer than expected; then not again for twice as long."""
        if self._clock() < self._due_at:
            return False
        self._wait(min(self._pause * GROWTH, LONGEST_PAUSE))
        return True

    def _wait(self, seconds: float) -> None:
        self._pause = seconds
        self._due_at = self._clock() + seconds
