"""Placement finds room for replicas in a cluster, or says what is there. It knows nodes' resources and no Ray."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchloom.pipelines.config import EngineConfig
from batchloom.pipelines.errors import ConfigError

log = logging.getLogger(__name__)

# Logical CPUs, Ray's bookkeeping: small enough that reading and writing find room beside replicas on two cores.
# Tokenize must not ask for as much as a replica does, or Ray fuses it into the replica's actor.
STAGE_CPUS = 0.25
RANK_CPUS = 0.5

Node = Mapping[str, float]
"""What a node offers: {"CPU": 16, "GPU": 8, ...}."""


@dataclass(frozen=True)
class Placement:
    """What a replica asks Ray for, and how many of them there can be."""

    device: str
    """What its ranks compute on: cpu or cuda."""
    spans_nodes: bool
    """Its ranks are actors of their own, in a placement group; what is asked for is the rest."""
    num_cpus: float
    num_gpus: int
    max_replicas: int
    threads_per_rank: int
    cores_per_node: int
    """Of the smallest node."""


def place(engine: EngineConfig, nodes: Sequence[Node]) -> Placement:
    """Raises ConfigError, with what is there, where the fewest replicas that the job asks for find no room."""
    gpus_by_node = sorted((int(node.get("GPU", 0)) for node in nodes), reverse=True)
    device = ("cuda" if gpus_by_node[0] else "cpu") if engine.device == "auto" else engine.device
    size = engine.tensor_parallel
    holds_gpus = device != "cpu" or engine.reserve_gpus
    spans_nodes = holds_gpus and size > gpus_by_node[0]
    max_replicas = min(engine.replicas.max, _room_by_cpus(engine, nodes, size + spans_nodes))
    if holds_gpus:
        max_replicas = min(max_replicas, _room_by_gpus(engine, gpus_by_node, spans_nodes))
    if max_replicas < engine.replicas.max:
        log.warning("engine.replicas.max is %d; the cluster has room for %d", engine.replicas.max, max_replicas)
    cores = min(int(node.get("CPU", 1)) for node in nodes)
    on_a_node = (
        math.ceil(max_replicas * size / len(nodes)) if spans_nodes else math.ceil(max_replicas / len(nodes)) * size
    )
    return Placement(
        device=device,
        spans_nodes=spans_nodes,
        num_cpus=RANK_CPUS * (1 if spans_nodes else size),
        num_gpus=size if holds_gpus and not spans_nodes else 0,
        max_replicas=max_replicas,
        threads_per_rank=max(1, cores // on_a_node),  # Ray would give each actor a single one
        cores_per_node=cores,
    )


def _room_by_cpus(engine: EngineConfig, nodes: Sequence[Node], num_actors: int) -> int:
    """Replicas that left no CPU for the other stages would hang the job without a word."""
    num_cpus = sum(node.get("CPU", 0) for node in nodes)
    room = math.floor((num_cpus - 2 * STAGE_CPUS) / (RANK_CPUS * num_actors))
    if room < engine.replicas.min:
        lower = "Lower it" if room > 0 else "Use fewer ranks"
        raise ConfigError(
            f"engine.replicas.min is {engine.replicas.min}; the cluster has {num_cpus:g} logical CPUs, room for "
            f"{max(room, 0)} replicas{_of_ranks(engine)} beside reading and writing. {lower}, or give Ray more CPUs."
        )
    return room


def _room_by_gpus(engine: EngineConfig, gpus_by_node: Sequence[int], spans_nodes: bool) -> int:
    """A replica's ranks have a GPU each, of one node where a node has as many."""
    size = engine.tensor_parallel
    room = sum(gpus_by_node) // size if spans_nodes else sum(num_gpus // size for num_gpus in gpus_by_node)
    if room < engine.replicas.min:
        needed = "a GPU" if size == 1 else f"{size} GPUs{'' if spans_nodes else ' of one node'}"
        lower = "Lower it" if room else "Use fewer ranks" if size > 1 else "Add GPUs"
        raise ConfigError(
            f"engine.replicas.min is {engine.replicas.min}: each replica{_of_ranks(engine)} needs {needed}. The "
            f"cluster has {_listed(gpus_by_node)}, room for {room}. {lower}, or set engine.device: cpu."
        )
    return room


def _of_ranks(engine: EngineConfig) -> str:
    return f" of {engine.tensor_parallel} ranks" if engine.tensor_parallel > 1 else ""


def _listed(gpus_by_node: Sequence[int]) -> str:
    """[4, 4, 1] reads "9 GPUs on 3 nodes (4, 4, 1)"."""
    gpus = f"{sum(gpus_by_node)} GPU{'' if sum(gpus_by_node) == 1 else 's'}"
    if len(gpus_by_node) == 1:
        return gpus
    return f"{gpus} on {len(gpus_by_node)} nodes ({', '.join(map(str, gpus_by_node))})"
