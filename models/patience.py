"""Patience is how long a call to a store is tried again. What an error means is trouble.py's to say."""

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from batchloom.models.trouble import Trouble, trouble_of

log = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 0.2, 20.0  # seconds between attempts; each waits half as long to once as long, at random
SLOWEST = 1 << 18  # bytes a second: a transfer that is slower is taken for one that hangs
TOLD_AFTER = 5.0  # seconds of waiting after which the log says so

Given = TypeVar("Given")


class GaveUpError(Exception):
    """A call failed for good. `str()` gives the last error's type and text, and how often it was tried."""

    def __init__(self, error: Exception, trouble: Trouble, num_attempts: int, seconds: float) -> None:
        tried = f" (tried {num_attempts} times in {seconds:.0f} s)" if num_attempts > 1 else ""
        super().__init__(f"{type(error).__name__}: {error}{tried}")
        self.error = error
        self.trouble = trouble


@dataclass(frozen=True)
class Patience:
    """How long a call is tried again after trouble that passes."""

    seconds: float = 300.0
    """After the first failure of a call; less than this is an outage that is survived."""
    doubtful_seconds: float = 10.0
    """For "not permitted", "not found" and "nobody there" where the same kind of call has never succeeded: a wrong
    key is told at once."""
    timeout: float = 60.0
    """Seconds after which an attempt counts as hung; a transfer has as long again for every 15 MiB."""

    def call(
        self,
        attempt: Callable[[], Given],
        *,
        is_known: bool = True,
        is_local: bool = False,
        num_bytes: int | None = 0,
        before_retry: Callable[[], None] = lambda: None,
    ) -> Given:
        """Return what `attempt` returns, after as many attempts as it takes.

        `is_known`: such a call has succeeded before, so that a refusal may be an outage's. `is_local`: of a local
        disk; it says what is true and has no deadline. `num_bytes` that an attempt transfers; None: it has no deadline.

        Raises: GaveUpError.
        """
        waiting = Waiting(self, is_known, is_local)
        while True:
            try:
                if is_local or num_bytes is None:
                    return attempt()
                return within(self.timeout + num_bytes / SLOWEST, attempt)
            except Exception as error:
                waiting.after(error)
            before_retry()


@dataclass
class Waiting:
    """The waits between the attempts of one call."""

    patience: Patience
    is_known: bool = True
    is_local: bool = False
    num_attempts: int = 0
    started: float = field(default_factory=lambda: time.monotonic())
    failed_at: float | None = None
    is_told: bool = False

    def after(self, error: Exception) -> None:
        """Wait until the next attempt. Raises: GaveUpError where there is to be none."""
        now = time.monotonic()
        self.num_attempts += 1
        self.failed_at = now if self.failed_at is None else self.failed_at
        trouble = trouble_of(error, self.is_local)
        left = self._seconds_left(trouble, now)
        if left <= 0:
            raise GaveUpError(error, trouble, self.num_attempts, now - self.started) from error
        if now - self.failed_at > TOLD_AFTER and not self.is_told:
            self.is_told = True
            log.warning("A store fails (%s: %s); tried again for %.0f s more.", type(error).__name__, error, left)
        longest = min(FIRST_WAIT * 2 ** min(self.num_attempts - 1, 20), LONGEST_WAIT)
        time.sleep(min(random.uniform(longest / 2, longest), left))  # at random: workers that fail together stay apart

    def _seconds_left(self, trouble: Trouble, now: float) -> float:
        assert self.failed_at is not None
        match trouble:
            case Trouble.LASTING:
                return 0
            case Trouble.DOUBTFUL if not self.is_known:
                return min(self.patience.seconds, self.patience.doubtful_seconds) - (now - self.started)
        return self.patience.seconds - (now - self.failed_at)


def is_local(filesystem: Any) -> bool:
    """Return whether calls of a filesystem have no network that they could wait for."""
    return isinstance(filesystem, LocalFileSystem | MemoryFileSystem)


def within(seconds: float, call: Callable[[], Given]) -> Given:
    """Return what `call` returns. It runs on a thread, which is abandoned after that many seconds.

    Raises: TimeoutError, and what `call` raises.
    """
    box: queue.SimpleQueue[tuple[Given | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            box.put((call(), None))
        except BaseException as error:  # handed over
            box.put((None, error))

    threading.Thread(target=work, daemon=True, name="store").start()
    try:
        value, error = box.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # a call that returned has a value
