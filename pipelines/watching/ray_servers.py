"""The servers of Ray that a driver needs: do the cluster's control store and this node's raylet still answer?

Ray ends this process without a word where the control store is gone for a minute or the node was found dead, after 15
seconds. Both are asked here, over TCP and without Ray, so that the job ends earlier and with words.
"""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import ray

CONTROL_STORE_SECONDS = 25.0  # a control store may be started again; leaving Ray without one takes up to 15 more
NODE_SECONDS = 4.0  # a raylet is never started again
ASKING_SECONDS = 5.0

Address = tuple[str, int]


def answers(address: Address) -> bool:
    """Return whether a server accepts connections."""
    try:
        socket.create_connection(address, ASKING_SECONDS).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Server:
    """What must answer."""

    name: str
    address: Address
    patience: float
    """Seconds without an answer after which it is lost."""


@dataclass(frozen=True)
class Silence:
    """A server that does not answer."""

    server: Server
    seconds: float

    @property
    def is_loss(self) -> bool:
        return self.seconds >= self.server.patience

    def __str__(self) -> str:
        return f"{self.server.name} does not answer for {self.seconds:.0f} s"


def loss_of(silences: Sequence[Silence]) -> str | None:
    """Return why a job cannot go on, where Ray is gone."""
    lost = next((silence for silence in silences if silence.is_loss), None)
    return None if lost is None else f"{lost}: it was killed or cannot be reached."


@dataclass
class RayServers:
    """Call `silences` every few seconds."""

    servers: Sequence[Server]
    ask: Callable[[Address], bool] = answers
    clock: Callable[[], float] = time.monotonic
    _silent_since: dict[Server, float] = field(default_factory=dict)

    @staticmethod
    def of_this_driver() -> "RayServers":
        """Return those that this process is connected to."""
        context = ray.get_runtime_context()
        host, _, port = context.gcs_address.rpartition(":")
        here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        store, raylet = (host.strip("[]"), int(port)), (here["NodeManagerAddress"], here["NodeManagerPort"])
        return RayServers(
            [
                Server(f"Ray's control store ({context.gcs_address})", store, CONTROL_STORE_SECONDS),
                Server("Ray's node manager (raylet) of this machine", raylet, NODE_SECONDS),
            ]
        )

    def silences(self) -> list[Silence]:
        """Return what does not answer."""
        now = self.clock()
        for server in self.servers:
            if self.ask(server.address):
                self._silent_since.pop(server, None)
            else:
                self._silent_since.setdefault(server, now)
        return [Silence(server, now - since) for server, since in self._silent_since.items()]
