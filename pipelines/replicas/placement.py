"""Placement: what a replica asks of Ray, how many of them nodes hold, and the threads of its ranks. It knows no Ray.

    a rank with a GPU   asks for no CPU: its node's GPUs say how many there are, so 8 GPUs with 4 CPUs hold 8
    a rank on CPUs      asks for RANK_CPUS, and leaves some to the other stages
    a replica           asks for all of that on one node; where it spans nodes, for nothing, and each rank for its own

Nodes come and go while a job runs. So only what never can have room is refused, and threads are decided on the node.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from batchloom.pipelines.config import EngineConfig
from batchloom.pipelines.errors import ConfigError

log = logging.getLogger(__name__)

# Logical CPUs, Ray's bookkeeping: small enough that reading and writing find room beside replicas on two cores.
# Tokenize must not ask for as much as a replica does, or Ray fuses it into the replica's actor.
STAGE_CPUS = 0.25
RANK_CPUS = 0.5
RESOLUTION = 10_000  # Ray counts resources in fractions of this size

Node = Mapping[str, float]
"""What a node offers: {"CPU": 16, "GPU": 8, ...}."""


@dataclass(frozen=True)
class NodeKind:
    """A kind of node that a cluster's autoscaler may add."""

    resources: Node
    most: float
    """How many there may be; may be infinite."""


@dataclass(frozen=True)
class Cluster:
    """The nodes of a cluster: those that are there, and those that may come."""

    nodes: Sequence[Node]
    coming: Sequence[NodeKind] | None = None
    """Empty: no node can come. None: nobody knows."""

    @property
    def is_closed(self) -> bool:
        return self.coming is not None and not self.coming

    @property
    def kinds_of_nodes(self) -> list[Node]:
        """What a node there, or one that may come, offers."""
        return [*self.nodes, *(kind.resources for kind in self.coming or () if kind.most)]

    def largest(self, num_nodes: int) -> list[Node]:
        """Return the nodes that are there, and of each kind all that may come, or `num_nodes`."""
        coming = [kind.resources for kind in self.coming or () for _ in range(int(min(kind.most, num_nodes)))]
        return [*self.nodes, *coming]


@dataclass(frozen=True)
class Placement:
    """Where replicas compute and what each takes."""

    device: str
    """What its ranks compute on: cpu or cuda."""
    num_ranks: int
    gpus_per_rank: float
    """0 where ranks hold none."""
    spans_nodes: bool
    """Its ranks are actors of their own, in a placement group."""
    min_replicas: int
    """That the job asks for."""
    max_replicas: int
    pool_min: int
    """The replicas that Ray Data keeps whatever else needs room. On CPUs not more than find room beside reading and
    writing, or these would get no CPU; the pool grows to the rest when nodes come."""

    @property
    def num_cpus(self) -> float:
        """Logical CPUs that a replica's actor asks for."""
        return 0.0 if self.gpus_per_rank else RANK_CPUS * self.num_ranks

    @property
    def num_gpus(self) -> float:
        """GPUs that a replica's actor asks for; those of a replica that spans nodes are its ranks' own."""
        return 0.0 if self.spans_nodes else self.gpus_per_rank * self.num_ranks

    @property
    def gpu_share(self) -> float:
        """The share of its GPU's memory that a rank may take."""
        return self.gpus_per_rank if self.device == "cuda" else 1.0

    def room(self, nodes: Sequence[Node]) -> int:
        """Return how many replicas the nodes hold beside reading and writing, whoever else uses them."""
        return self._held_by(nodes) if _cpus(nodes) >= 2 * STAGE_CPUS else 0

    def most_readers(self, cluster: Cluster) -> int | None:
        """Return how many processes may read, tokenize or write at once; None: as many as find room.

        Where replicas compute on the CPUs of a single node, a process for two of them: each takes more than a second of
        one to start, while replicas load.
        """
        if self.device != "cpu" or not cluster.is_closed or len(cluster.nodes) != 1:
            return None
        return max(1, int(_cpus(cluster.nodes)) // 2)

    def lacking(self, nodes: Sequence[Node], num_gone: int = 0) -> list[str]:
        """Return in words why the replicas that the job asks for find no room; `num_gone` other nodes have left."""
        gone = f"; {num_gone} of {len(nodes) + num_gone} nodes are gone" if num_gone else ""
        num_cpus, held, words = _cpus(nodes), self._held_by(nodes), []
        if num_cpus < 2 * STAGE_CPUS:
            needed = f"reading and writing need {2 * STAGE_CPUS:g} logical CPUs"
            words.append(f"{needed}, the cluster has {num_cpus:g}{gone}")
        if held < self.min_replicas:
            needed = f"a replica{self._of_ranks()} needs {self._needs()}"
            words.append(f"{needed}, the cluster has {self._has(nodes)}, room for {held} of {self.min_replicas}{gone}")
        return words

    def taken(self, nodes: Sequence[Node], free: Node) -> list[str]:
        """Return in words that what a replica needs is there and taken, by whomever. `free`: of all nodes together."""
        name, needed = ("GPU", self.gpus_per_rank * self.num_ranks) if self.gpus_per_rank else ("CPU", self.num_cpus)
        if (left := free.get(name, 0.0)) >= needed:
            return []
        return [f"a replica{self._of_ranks()} needs {self._needs()}, the cluster has {self._has(nodes)}, {left:g} free"]

    def ways_out(self, nodes: Sequence[Node]) -> list[str]:
        """Return what to change in the job or the cluster, where replicas find no room."""
        if self._held_by(nodes) >= self.min_replicas:
            return ["give Ray more CPUs"]
        ways = ["lower engine.replicas.min"] if self.room(nodes) else []
        ways += ["use fewer ranks"] if self.num_ranks > 1 else []
        ways += ["add GPUs"] if self.gpus_per_rank else ["give Ray more CPUs"]
        return [*ways, "set engine.device: cpu"] if self.device == "cuda" else ways

    def _held_by(self, nodes: Sequence[Node]) -> int:
        if self.spans_nodes:
            return sum(map(self._ranks_on, nodes)) // self.num_ranks
        if self.gpus_per_rank:
            return sum(self._ranks_on(node) // self.num_ranks for node in nodes)
        beside_stages = _times(_cpus(nodes) - 2 * STAGE_CPUS, self.num_cpus)
        return min(beside_stages, sum(_times(node.get("CPU", 0), self.num_cpus) for node in nodes))

    def threads_per_rank(self, node: Node, nodes: Sequence[Node]) -> int:
        """Return the threads of a rank on `node`: an equal share of its CPUs for each rank that may come to lie there.

        A rank with GPUs has the share of its GPUs. Without, replicas are spread over those of `nodes` that hold one.
        """
        num_cpus = node.get("CPU", 0)
        if self.gpus_per_rank:
            ranks = min(self.max_replicas * self.num_ranks, self._ranks_on(node))
        else:
            num_holding = sum(other.get("CPU", 0) >= self.num_cpus for other in nodes)
            ranks = math.ceil(self.max_replicas / max(1, num_holding)) * self.num_ranks
        return max(1, int(num_cpus) // max(1, ranks))  # Ray would give each actor a single one

    def _ranks_on(self, node: Node) -> int:
        """Return how many ranks the node's GPUs hold: a rank's share is of one GPU, and what is left of it is left."""
        return int(_gpus(node)) * _times(1, self.gpus_per_rank)

    def _of_ranks(self) -> str:
        return f" of {self.num_ranks} ranks" if self.num_ranks > 1 else ""

    def _needs(self) -> str:
        if not self.gpus_per_rank:
            return f"{self.num_cpus:g} logical CPUs"
        num_gpus = self.gpus_per_rank * self.num_ranks
        of_one_node = " of one node" if num_gpus > 1 and not self.spans_nodes else ""
        return f"{num_gpus:g} {_plural_gpus(num_gpus)}{of_one_node}"

    def _has(self, nodes: Sequence[Node]) -> str:
        """[4, 4, 1] GPUs read "9 GPUs on 3 nodes, at most 4 on one"."""
        if not self.gpus_per_rank:
            return f"{_cpus(nodes):g} logical CPUs"
        num_gpus = [_gpus(node) for node in nodes]
        has = f"{sum(num_gpus):g} {_plural_gpus(sum(num_gpus))}"
        return (
            has
            if sum(num_gpus) == max(num_gpus, default=0)
            else (f"{has} on {len(nodes)} nodes, at most {max(num_gpus):g} on one")
        )


def place(engine: EngineConfig, cluster: Cluster) -> Placement:
    """Return how replicas are placed.

    Raises: ConfigError, with what is there, where the fewest replicas that the job asks for can never find room.
    """
    most_gpus = max(map(_gpus, cluster.kinds_of_nodes), default=0)
    device = engine.wanted_device
    if device == "auto":
        device = "cuda" if most_gpus else "cpu"
    holds_gpus = device != "cpu" or engine.reserve_gpus
    placement = Placement(
        device=device,
        num_ranks=engine.tensor_parallel,
        gpus_per_rank=engine.gpus_per_replica if holds_gpus else 0,
        spans_nodes=holds_gpus and 0 < most_gpus < engine.tensor_parallel,
        min_replicas=engine.replicas.min,
        max_replicas=engine.replicas.max,
        pool_min=engine.replicas.min,
    )
    if cluster.coming is not None:
        largest = cluster.largest(engine.replicas.min * engine.tensor_parallel)
        if placement.room(largest) < engine.replicas.min:
            raise ConfigError(_refusal(placement, cluster))
    if cluster.is_closed and (room := placement.room(cluster.nodes)) < engine.replicas.max:
        log.warning("engine.replicas.max is %d; the cluster has room for %d", engine.replicas.max, room)
    if placement.gpus_per_rank:
        return placement
    return replace(placement, pool_min=max(1, min(engine.replicas.min, placement.room(cluster.nodes))))


def one_of(ways: Sequence[str]) -> str:
    """Return a sentence: "Add GPUs, use fewer ranks, or wait longer."."""
    *others, last = ways
    text = f"{', '.join(others)}{',' if len(others) > 1 else ''} or {last}" if others else last
    return f"{text[0].upper()}{text[1:]}."


def _refusal(placement: Placement, cluster: Cluster) -> str:
    lacking = placement.lacking(cluster.nodes)
    refusal = f"engine.replicas.min is {placement.min_replicas}: {'; '.join(lacking)}."
    if cluster.coming:
        resources = [kind.resources for kind in cluster.coming]
        gpus, cpus = (max(node.get(name, 0) for node in resources) for name in ("GPU", "CPU"))
        count = sum(kind.most for kind in cluster.coming)
        refusal += f" Its autoscaler may add {count:g} nodes with at most {gpus:g} GPUs and {cpus:g} CPUs each."
    return f"{refusal} {one_of(placement.ways_out(cluster.nodes))}"


def _cpus(nodes: Iterable[Node]) -> float:
    return sum(node.get("CPU", 0) for node in nodes)


def _gpus(node: Node) -> float:
    return node.get("GPU", 0)


def _times(whole: float, part: float) -> int:
    """Return how often a part fits, counted as Ray does: 1.0 // 0.1 is 9."""
    return max(0, round(whole * RESOLUTION)) // max(1, round(part * RESOLUTION))


def _plural_gpus(count: float) -> str:
    return "GPU" if count == 1 else "GPUs"
