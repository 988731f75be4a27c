"""What Ray Data asks of three actors of its own, answered in this process: for a Ray of one node.

One shares a cluster among the datasets that run at once; it is Ray's, without being an actor. One holds figures for a
dashboard. One tells where actors are, for nodes that leave. Their names are Ray's own affair: where another version has
others, importing this fails.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import ray
from ray.data._internal import stats
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordination
from ray.data._internal.execution.operators import actor_pool_map_operator as pools
from ray.data._internal.utils import cached_ray_internals as locations

COORDINATOR, FIGURES, PLACES = (
    "get_or_create_autoscaling_coordinator",
    "get_or_create_stats_actor",
    "get_or_create_actor_location_tracker",
)
BEFORE = {
    (module, name): getattr(module, name)
    for module, name in ((coordination, COORDINATOR), (stats, FIGURES), (pools, PLACES), (locations, PLACES))
}


@contextmanager
def in_this_process() -> Iterator[None]:
    """Answer them here, meanwhile. Needs a connection to Ray."""
    handles = {COORDINATOR: _Handle(_Coordinator()), FIGURES: _Handle(_Figures()), PLACES: _Handle(_Places())}
    for module, name in BEFORE:
        setattr(module, name, lambda handle=handles[name]: handle)
    try:
        yield
    finally:
        for (module, name), before in BEFORE.items():
            setattr(module, name, before)


class _Handle:
    """Stands for the handle of an actor, whose methods run in the process that has it."""

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
        """Called in the actor's process."""

    def get_actor_locations(self, actors: tuple[str, ...]) -> dict[str, str]:  # noqa: ARG002
        return {}
