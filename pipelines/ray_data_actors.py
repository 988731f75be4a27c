"""What Ray Data asks of three actors of its own, answered in this process: for a Ray of one node.

One shares a cluster among the datasets that run at once; it is Ray's, called without being an actor. One holds figures
for a dashboard. One tells where actors are, for nodes that leave. No answer passes through Ray: where its raylet is
lost, a call ends the process before anybody can say so.

The names are Ray's own affair: where another version has others, importing this fails.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from uuid import uuid4

import ray
import ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator as coordination
import ray.data._internal.cluster_autoscaler.default_cluster_autoscaler_v2 as by_use
import ray.data._internal.cluster_autoscaler.rate_based_cluster_autoscaler as by_rate
from ray.data._internal.cluster_autoscaler import AutoscalingCoordinator
from ray.data._internal.execution.operators import actor_pool_map_operator as pools
from ray.data._internal.stats import _StatsManager as Figures


@cache
def coordinator() -> Any:
    """Return the one of this process. To be called before there is a connection: where there is one, it would start a
    thread that looks for nodes that came, and would outlive this Ray."""
    return coordination._AutoscalingCoordinatorActor(
        send_resources_request=lambda *_, **__: None,
        get_cluster_nodes=lambda: ray.nodes() if ray.is_initialized() else [],
    )


@contextmanager
def in_this_process() -> Iterator[None]:
    """Answer them here, meanwhile. Needs a connection to Ray."""
    coordinator()._tick()  # it looks at the node
    for (owner, name), value in _HERE.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name), before in _BEFORE.items():
            setattr(owner, name, before)
        coordinator.cache_clear()  # with shares of datasets that ended without a word


class _Coordinator(AutoscalingCoordinator):
    """A dataset's share."""

    def __init__(self, requester_id: str, subcluster_selector: Mapping[str, str] | None = None) -> None:
        self._shared, self._dataset, self._selector = coordinator(), requester_id, subcluster_selector

    def request_resources(self, *arguments: Any, **options: Any) -> None:
        self._shared.request_resources(self._dataset, *arguments, subcluster_selector=self._selector, **options)

    def cancel_request(self) -> None:
        self._shared.cancel_request(self._dataset)

    def get_reserved_resources(self) -> Any:
        return self._shared.get_reserved_resources(self._dataset)


class _Places:
    """Stands for a method of an actor, and for the actor."""

    @property
    def update_actor_location(self) -> "_Places":
        return self

    def remote(self, *_: Any) -> None:
        """Called by each actor of a pool as it starts."""


def _nothing(*_: Any, **__: Any) -> None:
    """In place of what tells figures."""


_HERE: dict[tuple[Any, str], Any] = {
    (by_rate, "DefaultAutoscalingCoordinator"): _Coordinator,
    (by_use, "DefaultAutoscalingCoordinator"): _Coordinator,
    (Figures, "gen_dataset_id_from_stats_actor"): staticmethod(lambda: uuid4().hex),
    (Figures, "register_dataset_to_stats_actor"): staticmethod(_nothing),
    (Figures, "update_execution_metrics"): staticmethod(_nothing),
    (Figures, "update_iteration_metrics"): staticmethod(_nothing),
    (pools, "get_or_create_actor_location_tracker"): _Places,
    (pools, "get_actor_locations"): lambda _: {},
}
_BEFORE = {(owner, name): vars(owner)[name] for owner, name in _HERE}
