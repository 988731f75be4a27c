"""A follower's process as the leader holds it: started on this node, or connected from another. It knows no model."""

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
# How long a follower on another node may take to connect; its process runs already when it is asked to.
CONNECT_SECONDS = 60.0
# A node that disappears without closing its connections is noticed after 5 + 3 * 5 seconds.
KEEP_ALIVE = (
    (socket.TCP_KEEPIDLE, 5),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 20000),
)


class FollowerProcess(Protocol):
    """One follower's process, and the leader's end of the connection to it."""

    connection: Connection

    @property
    def process_id(self) -> int | None:
        """The process's id on this node; None where it runs on another."""

    def kill(self) -> None:
        """Kill the process, or close its connection, after which it ends itself. Idempotent."""

    def wait(self) -> str:
        """Wait for the end of the process, whose connection has ended; return how it ended, for a message."""


class FollowerStarter(Protocol):
    """Starts followers on other nodes; implemented by the caller, who knows the cluster."""

    host: str
    """This node's address as the other nodes reach it."""

    def start(self, rank: int, port: int, key: bytes) -> None:
        """Have a process connect to `host` at `port`, send the key, and run as follower `rank`; return at once."""


class LocalFollower:
    """A follower on this node: a child process at the other end of a socket pair."""

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

    def wait(self) -> str:
        code = self._process.wait()
        return f"(process {self.process_id}) ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"


class RemoteFollower:
    """A follower on another node, connected over TCP. Its process ends when the connection does."""

    process_id = None

    def __init__(self, starter: FollowerStarter, rank: int) -> None:
        """Raises: RankLostError where no process with the key connects in time."""
        key = secrets.token_bytes(KEY_BYTES)
        with socket.create_server((starter.host, 0)) as server:
            server.settimeout(CONNECT_SECONDS)
            starter.start(rank, server.getsockname()[1], key)
            self._socket, self._host = self._accept(server, key, rank)
        self.connection = Connection(os.dup(self._socket.fileno()))

    def _accept(self, server: socket.socket, key: bytes, rank: int) -> tuple[socket.socket, str]:
        """Return the first connection that sends the key, and its host; close all others."""
        while True:
            try:
                accepted, (host, _) = server.accept()
            except TimeoutError as error:
                raise RankLostError(f"Rank {rank} did not connect within {CONNECT_SECONDS:g} s.") from error
            accepted.settimeout(CONNECT_SECONDS)
            if hmac.compare_digest(accepted.recv(KEY_BYTES, socket.MSG_WAITALL), key):
                keep_alive(accepted)
                return accepted, host
            accepted.close()

    def kill(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._socket.shutdown(socket.SHUT_RDWR)

    def wait(self) -> str:
        return f"(on {self._host}) closed its connection"


def connect_to_leader(host: str, port: int, key: bytes) -> int:
    """Connect a follower on another node to its leader; return the connection's file descriptor.

    Raises: OSError where the leader cannot be reached.
    """
    connected = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
    connected.sendall(key)
    keep_alive(connected)
    return connected.detach()


def keep_alive(connected: socket.socket) -> None:
    """Turn on TCP keep-alive, so that the system notices a lost peer, and let reads block without a timeout."""
    connected.settimeout(None)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE:
        connected.setsockopt(socket.IPPROTO_TCP, option, value)


def own_address(file_descriptor: int) -> str:
    """Return this node's address on a TCP connection; the loopback address for a socket pair."""
    with socket.socket(fileno=os.dup(file_descriptor)) as connected:
        return connected.getsockname()[0] if connected.family == socket.AF_INET else LOOPBACK
