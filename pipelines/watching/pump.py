"""A pump iterates on a thread of its own, so that whoever takes what it yields can wait for a limited time."""

import ctypes
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

STOP_SECONDS = 30.0  # to wait for an iterator that is to stop
ABANDON_SECONDS = 2.0  # and for one that may wait for what is gone


class Stopped(BaseException):
    """Raised inside an iterator that nobody waits for any more, as Ctrl-C would be."""


class Pump(Generic[Item]):
    """A context; at its end the iterator is stopped where it stands."""

    def __init__(self, start: Callable[[], Iterator[Item]]) -> None:
        """`start` is called on the thread too."""
        self._start = start
        self._stop_seconds = STOP_SECONDS
        self._taken: queue.SimpleQueue[tuple[Item | None, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pump", daemon=True)

    def __enter__(self) -> "Pump[Item]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive() and self._thread.ident is not None:
            # The iterator sleeps between looks at its queue, in Python: there the exception reaches it.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(Stopped))
            self._thread.join(self._stop_seconds)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def abandon(self) -> None:
        """Do not wait long for the end of the iterator."""
        self._stop_seconds = ABANDON_SECONDS

    def take(self, seconds: float) -> Item | None:
        """Return the next item, or None where none comes in so many seconds.

        Raises: what the iterator raised; StopIteration at its end.
        """
        try:
            item, failure = self._taken.get(timeout=seconds)
        except queue.Empty:
            return None
        if failure is not None:
            raise failure
        return item

    def _run(self) -> None:
        try:
            for item in self._start():
                self._taken.put((item, None))
            self._taken.put((None, StopIteration()))
        except BaseException as failure:
            self._taken.put((None, failure))
