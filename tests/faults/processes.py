"""Processes that the tests start: found by a mark in their environment, signalled, ended. It knows no jobs."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

MARK = "BATCHLOOM_FAULTS"


def with_mark(mark: str, part_of_command: str = "") -> list[int]:
    """Return the processes that inherited the mark and whose command line has the given part."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if f"{MARK}={mark}".encode() in environment.split(b"\0") and part_of_command.encode() in command:
            found.append(int(folder.name))
    return found


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


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
