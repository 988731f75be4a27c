"""A pump iterates on a thread of its own, so that whoever takes what it yields can wait for a limited time."""

import ctypes
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

STOP_SECONDS = 30.0  # to wait for an iterator that is to stop
ASK_SECONDS = 10.0  # until one that neither ended nor yielded is told again: longer than Ray takes to put away
ABANDON_SECONDS = 2.0  # and for one that may wait for what is gone


class Stopped(BaseException):
    """Raised inside an iterator that nobody waits for any more, as Ctrl-C would be."""


class Pump(Generic[Item]):
    """A context; at its end the iterator is stopped where it stands."""

    def __init__(self, start: Callable[[], Iterator[Item]]) -> None:
        """`start` is called on the thread too."""
        self._start = start
        self._stop_seconds = STOP_SECONDS
        self._is_stopping = False
        self._taken: queue.SimpleQueue[tuple[Item | None, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pump", daemon=True)

    def __enter__(self) -> "Pump[Item]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping = True
        thread = ctypes.c_ulong(self._thread.ident or 0)
        deadline = time.monotonic() + self._stop_seconds
        while self._thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            # The iterator sleeps between looks at its queue, in Python: there the exception reaches it. One that is
            # raised where Python cannot hand it on, as in the callback of a weak reference, is lost.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(Stopped))
            self._thread.join(min(ASK_SECONDS, left))

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
                if self._is_stopping:
                    return
                self._taken.put((item, None))
            self._taken.put((None, StopIteration()))
        except BaseException as failure:
            self._taken.put((None, failure))
