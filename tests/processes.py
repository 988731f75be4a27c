"""Processes of a test, whoever their parents are by now, and ports for them."""

import os
import socket
from pathlib import Path


def with_setting(setting: str) -> dict[int, str]:
    """Return command lines, by process id, of the other processes that carry `NAME=value` in their environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if setting.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended meanwhile
            continue
    found.pop(os.getpid(), None)
    return found


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
