"""A rank's process as the first rank sees it: a child beside it, or a caller from another node. It knows no model."""

import contextlib
import hmac
import os
import secrets
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Protocol

from batchloom.models.errors import RankLostError

LOOPBACK = "127.0.0.1"
KEY_BYTES = 32
# How long a rank on another node may take to call back; its process is there when it is asked.
CALL_BACK_SECONDS = 60.0
# A node that is lost without a word is noticed after 5 + 3 * 5 seconds.
KEEP_ALIVE = (
    (socket.TCP_KEEPIDLE, 5),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 20000),
)


class RankProcess(Protocol):
    """One follower."""

    connection: Connection

    @property
    def process_id(self) -> int | None: ...

    def kill(self) -> None: ...

    def end(self) -> str:
        """Waits for the end of the process, whose connection has ended, and says how that came."""


class Elsewhere(Protocol):
    """Starts ranks on other nodes; given by who knows of nodes."""

    host: str
    """This node's address, which the others reach."""

    def start(self, rank: int, port: int, key: bytes) -> None:
        """Has a process call `host` at `port`, say the key, and be a follower (`follow`); returns at once."""


class Child:
    """A process on this node, at the other end of a socket pair."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "batchloom.models.ranks.follower", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        self.connection = Connection(ours.detach())

    @property
    def process_id(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> str:
        code = self._process.wait()
        return f"(process {self.process_id}) ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"


class Caller:
    """A process on another node that has called back. It ends when its connection does."""

    process_id = None

    def __init__(self, elsewhere: Elsewhere, rank: int) -> None:
        key = secrets.token_bytes(KEY_BYTES)
        with socket.create_server((elsewhere.host, 0)) as server:
            server.settimeout(CALL_BACK_SECONDS)
            elsewhere.start(rank, server.getsockname()[1], key)
            self._socket, self._host = self._accept(server, key, rank)
        self.connection = Connection(os.dup(self._socket.fileno()))

    def _accept(self, server: socket.socket, key: bytes, rank: int) -> tuple[socket.socket, str]:
        while True:
            try:
                caller, (host, _) = server.accept()
            except TimeoutError as error:
                raise RankLostError(f"Rank {rank} did not call back within {CALL_BACK_SECONDS:g} s.") from error
            caller.settimeout(CALL_BACK_SECONDS)
            if hmac.compare_digest(caller.recv(KEY_BYTES, socket.MSG_WAITALL), key):
                keep_alive(caller)
                return caller, host
            caller.close()

    def kill(self) -> None:
        with contextlib.suppress(OSError):  # it is gone
            self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> str:
        return f"(on {self._host}) closed its connection"


def call(host: str, port: int, key: bytes) -> int:
    """Calls the first rank back: the file descriptor of the connection."""
    caller = socket.create_connection((host, port), timeout=CALL_BACK_SECONDS)
    caller.sendall(key)
    keep_alive(caller)
    return caller.detach()


def keep_alive(connected: socket.socket) -> None:
    """Makes the system look for the other end, and lets reads wait for as long as it is there."""
    connected.settimeout(None)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE:
        connected.setsockopt(socket.IPPROTO_TCP, option, value)


def own_address(file_descriptor: int) -> str:
    """This node's address on a connection to another; the loopback device's where both ends are here."""
    with socket.socket(fileno=os.dup(file_descriptor)) as connected:
        return connected.getsockname()[0] if connected.family == socket.AF_INET else LOOPBACK
