"""A Ray of this process's own: on the loopback interface, and without what only a cluster needs.

By itself Ray starts, for one job, servers that nobody asks (a dashboard without pages, a monitor of logs that are not
forwarded, one of an autoscaler that has no nodes to add), and Ray Data three actors. Each takes half to one and a half
seconds of a core to import Ray, which a job's replica waits for on a small machine.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import ray
from ray._private import parameter, ray_constants, services
from ray.data._internal import stats
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordination
from ray.data._internal.execution.operators import actor_pool_map_operator
from ray.data._internal.utils import cached_ray_internals

LOOPBACK = "127.0.0.1"
SETTINGS = {
    # by itself Ray ends workers above the number of CPUs, where actors count, after a second without work; units that
    # took longer to compute found no reader, and each paid a start of Python, a second of a core
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
}


def start(**options: Any) -> None:
    """Start it, and connect this process to it, with options of `ray.init`."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    with ExitStack() as replaced:
        # Elsewhere than on macOS and Windows Ray replaces a loopback address by one that other machines can reach, and
        # then its servers listen on all interfaces, unless this constant is false.
        replaced.enter_context(_replaced(ray_constants, "ENABLE_RAY_CLUSTER", False))
        fewer: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False}
        replaced.enter_context(_replaced(parameter, "RayParams", partial(parameter.RayParams, **fewer)))
        replaced.enter_context(_replaced(services, "start_api_server", lambda *_, **__: (None, None)))
        ray.init(address="local", _node_ip_address=LOOPBACK, **options)


@contextmanager
def without_actors() -> Iterator[None]:
    """Answer in this process what Ray Data asks of actors of its own.

    One of them shares a cluster among datasets; it is Ray's, without being an actor. One holds figures for a dashboard.
    One tells where actors are, for nodes that leave: here there is one node.
    """
    coordinator = _Coordinator()
    figures = _Handle(_Figures())
    places = _Handle(_Places())
    with ExitStack() as replaced:
        for module, name, handle in (
            (coordination, "get_or_create_autoscaling_coordinator", _Handle(coordinator)),
            (stats, "get_or_create_stats_actor", figures),
            (actor_pool_map_operator, "get_or_create_actor_location_tracker", places),
            (cached_ray_internals, "get_or_create_actor_location_tracker", places),
        ):
            replaced.enter_context(_replaced(module, name, lambda handle=handle: handle))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class _Handle:
    """Stands for the handle of an actor, whose methods run in this process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> "_Method":
        if name.startswith("_"):  # of a copy that is not whole yet
            raise AttributeError(name)
        return _Method(getattr(self._actor, name))


class _Method:
    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def remote(self, *arguments: Any, **options: Any) -> Any:
        """Return a reference to what the method returns, as an actor's does."""
        return ray.put(self._method(*arguments, **options))


class _Coordinator(coordination._AutoscalingCoordinatorActor):
    """Shares the node among the datasets that run at once."""

    def __init__(self) -> None:
        super().__init__(send_resources_request=lambda *_: None)

    @property
    def TICK_INTERVAL_S(self) -> float:  # type: ignore[override]
        """Ends the thread that looks for nodes that came, which would outlive this Ray."""
        raise SystemExit


class _Figures:
    def gen_dataset_id(self) -> str:
        return uuid4().hex

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None


class _Places:
    def update_actor_location(self, actor: str, node: str) -> None:
        """Called in the actor."""

    def get_actor_locations(self, actors: tuple[str, ...]) -> dict[str, str]:  # noqa: ARG002
        return {}
