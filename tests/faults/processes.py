"""Processes that the tests start: found by a mark in their environment, signalled, ended. It knows no jobs."""

import os
import signal
import time
from collections.abc import Callable

from tests.processes import with_setting

MARK = "BATCHLOOM_FAULTS"


def with_mark(mark: str, part_of_command: str = "") -> list[int]:
    """Return the processes that inherited the mark and whose command line has the given part."""
    return [pid for pid, command in with_setting(f"{MARK}={mark}").items() if part_of_command in command]


def send(pids: list[int], which: signal.Signals) -> int:
    """Send a signal to each process that still lives, and return how many did."""
    num_sent = 0
    for pid in pids:
        try:
            os.kill(pid, which)
        except ProcessLookupError:
            continue
        num_sent += 1
    return num_sent


def end_all(mark: str) -> None:
    """Ask all processes with the mark to end, then insist."""
    send(with_mark(mark), signal.SIGTERM)
    deadline = time.monotonic() + 3
    while with_mark(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    while left := with_mark(mark):
        send(left, signal.SIGKILL)
        time.sleep(0.1)


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until a condition holds. Raises: TimeoutError, naming what did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {seconds:g} s")
        time.sleep(0.01)
