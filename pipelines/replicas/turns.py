"""Turns of workers on one device: side by side, or one alone where memory is short. It knows no work."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Lets workers compute side by side, and one alone that has asked for it; counts the seconds in which any did."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_computing = self._num_alone = 0
        self._seconds = self._since = 0.0

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        """Compute beside other workers, after those that want to be alone."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_alone == 0)
            self._begin()
        try:
            yield
        finally:
            with self._changed:
                self._end()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Compute once no other worker does; others wait for the end."""
        with self._changed:
            self._num_alone += 1
            self._changed.wait_for(lambda: self._num_computing == 0)
            self._begin()
        try:
            yield
        finally:
            with self._changed:
                self._num_alone -= 1
                self._end()

    def busy_seconds(self) -> float:
        """Return the seconds so far in which at least one worker computed."""
        with self._changed:
            return self._seconds + (time.perf_counter() - self._since if self._num_computing else 0.0)

    def _begin(self) -> None:
        if self._num_computing == 0:
            self._since = time.perf_counter()
        self._num_computing += 1

    def _end(self) -> None:
        self._num_computing -= 1
        if self._num_computing == 0:
            self._seconds += time.perf_counter() - self._since
        self._changed.notify_all()
