"""Spanning replicas have their ranks on several nodes, in placement groups that the driver makes and removes.

    Infer, an actor of Ray Data's pool  --answer(unit)-->  FirstRank  --calls, sums-->  OtherRank ...
    without GPUs                                           each an actor with one GPU of the replica's group

Ray Data starts its actors alike and gives none a group of its own. So each claims one that has its nodes, by the name
of its first rank, which one living actor can have at a time. What an actor starts ends with it: a claim ends with
whoever made it. Groups without nodes wait for them, which Ray's autoscaler sees, and are claimed when they have them.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from batchloom.models.errors import RankLostError
from batchloom.pipelines import cluster
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.replicas.placement import Placement
from batchloom.pipelines.replicas.probe import Agreement
from batchloom.pipelines.replicas.replica import Replica, start_replica
from batchloom.pipelines.telemetry.activity import Activity

CLAIM_SECONDS = 1.0  # between two looks at the groups
CONCURRENT_CALLS = 64  # units in flight and questions about measures; each waits for the engine, none computes


@contextmanager
def groups(placement: Placement) -> Iterator[list[PlacementGroup]]:
    """A group for each replica that spans nodes; removed in the end, by Ray where the driver is killed."""
    num_groups = placement.max_replicas if placement.spans_nodes else 0
    bundles = [{"GPU": placement.gpus_per_rank}] * placement.num_ranks
    made = [placement_group(bundles, strategy="PACK") for _ in range(num_groups)]
    try:
        yield made
    finally:
        for group in made:
            remove_placement_group(group)


@dataclass(frozen=True)
class Claim:
    """A group that its replica alone has, as long as this process lives."""

    group: PlacementGroup
    first: Any
    """The first rank's actor."""

    @staticmethod
    def of(groups: Sequence[PlacementGroup]) -> "Claim":
        """Claim a group that has its nodes and that no living replica has; waits for one."""
        while True:
            states = placement_group_table()
            for group in groups:
                if states[group.id.hex()]["state"] == "CREATED":
                    options = {"name": group.id.hex(), "max_concurrency": CONCURRENT_CALLS}
                    try:
                        return Claim(group, _rank(FirstRank, group, 0, **options))
                    except ValueError:
                        continue  # the name is taken
            time.sleep(CLAIM_SECONDS)


class SpanningReplica:
    """A replica whose ranks are actors; a call of it raises RankLostError where one of them is gone."""

    agreement: Agreement | None = None  # int8 is for CPUs, and ranks on several nodes have GPUs

    def __init__(self, settings: Mapping[str, Any], placement: Placement, claim: Claim) -> None:
        self._first = claim.first
        self._others = [_rank(OtherRank, claim.group, rank) for rank in range(1, claim.group.bundle_count)]
        self._call("start", settings, placement, self._others)

    def answer(self, unit: Unit, requests: pa.Table) -> pa.Table:
        return self._call("answer", unit, requests)

    def activity(self) -> Activity:
        activity: Activity = self._call("activity")
        return activity

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return _get(getattr(self._first, method).remote(*arguments))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error


def _rank(kind: type, group: PlacementGroup, rank: int, **options: Any) -> Any:
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
    actor: Any = ray.remote(num_cpus=0, num_gpus=1, scheduling_strategy=place, **options)(kind)
    return actor.remote()


def _get(answers: Any) -> Any:
    """Ray's get, for answers of ranks; a new one may still have been given to a node that is gone already."""
    try:
        return ray.get(answers)
    except ray.exceptions.RayActorError as error:
        raise RankLostError(f"A rank of the model is gone, and with it this replica: {error}") from error


class FirstRank:
    """The actor that has the replica; it calls the others."""

    _replica: Replica

    def start(self, settings: Mapping[str, Any], placement: Placement, others: Sequence[Any]) -> None:
        _get([other.__ray_ready__.remote() for other in others])  # a rank is asked to call back when it is there
        num_threads, starter = _num_threads(placement), RayFollowerStarter(others, placement)
        self._replica = start_replica(**settings, num_threads=num_threads, follower_starter=starter)

    def answer(self, unit: Unit, requests: pa.Table) -> pa.Table:
        return self._replica.answer(unit, requests)

    def activity(self) -> Activity:
        return self._replica.activity()


class OtherRank:
    """The actor that is one of the others."""

    def follow(self, host: str, port: int, key: bytes, placement: Placement) -> None:
        from batchloom.models.ranks import connection, follower

        follower.main(connection.connect_to_leader(host, port, key), _num_threads(placement))


class RayFollowerStarter:
    """Starts the followers in their actors: models/ranks/connection.py FollowerStarter."""

    def __init__(self, others: Sequence[Any], placement: Placement) -> None:
        self.host: str = ray.util.get_node_ip_address()
        self._others, self._placement = others, placement

    def start(self, rank: int, port: int, key: bytes) -> None:
        self._others[rank - 1].follow.remote(self.host, port, key, self._placement)


def _num_threads(placement: Placement) -> int:
    return placement.threads_per_rank(*cluster.this_node())
