"""A Ray of this process's own: on the loopback interface, and without what only a cluster needs.

By itself Ray starts, for one job, servers that nobody asks (a dashboard without pages, a monitor of logs that are not
forwarded, one of an autoscaler that has no nodes to add), and Ray Data three actors. Each takes half to one and a half
seconds of a core to import Ray, which a job's replica waits for on a small machine.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import node, parameter, ray_constants, services

from batchloom.pipelines.errors import ConfigError

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
WORKER_SCRIPT = str(Path(__file__).with_name("ray_worker.py"))
SETTINGS = {
    # by itself Ray ends workers above the number of CPUs, where actors count, after a second without work; units that
    # took longer to compute found no reader, and each paid a start of Python, a second of a core
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
}


def start(**options: Any) -> None:
    """Start it, and connect this process to it, with options of `ray.init`.

    Raises: ConfigError where Ray cannot be in its folder; what `ray.init` does. It leaves nothing then that
    `ray.shutdown` does not end.
    """
    check_folder(get_default_ray_temp_dir())
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if (actors := _ray_datas()) is not None:
        actors.coordinator()
    with ExitStack() as replaced:
        # Elsewhere than on macOS and Windows Ray replaces a loopback address by one that other machines can reach, and
        # then its servers listen on all interfaces, unless this constant is false.
        replaced.enter_context(_replaced(ray_constants, "ENABLE_RAY_CLUSTER", False))
        fewer: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False, "setup_worker_path": WORKER_SCRIPT}
        replaced.enter_context(_replaced(parameter, "RayParams", partial(parameter.RayParams, **fewer)))
        replaced.enter_context(_replaced(services, "start_api_server", lambda *_, **__: (None, None)))
        replaced.enter_context(_replaced(node, "Node", _Node))
        ray.init(address="local", _node_ip_address=LOOPBACK, **options)


def check_folder(folder: str) -> None:
    """Raise ConfigError for a folder in which Ray does not start, or waits half a minute for what never comes."""
    if not os.path.isabs(folder):
        wrong = "it is a relative path, which Ray's processes do not find"
    elif not folder.isascii():
        wrong = "it has letters beyond ASCII, which Ray does not take"
    else:
        return
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "TMPDIR")
    raise ConfigError(
        f"Ray's folder on this machine would be {folder!r}: {wrong}. Set RAY_TMPDIR to another, such as /tmp "
        f"({name} is {os.environ.get(name)!r})."
    )


class _Node(node.Node):
    """Ray's servers. Where they do not start, or are interrupted, nobody else knows of those that are there."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        try:
            super().__init__(*arguments, **options)
        except BaseException:
            self.kill_all_processes(check_alive=False)
            raise


@contextmanager
def without_actors() -> Iterator[None]:
    """Answer in this process what Ray Data asks of three actors of its own, where it is a version that we know."""
    actors = _ray_datas()
    with nullcontext() if actors is None else actors.in_this_process():
        yield


def _ray_datas() -> ModuleType | None:
    try:
        from batchloom.pipelines import ray_data_actors
    except (ImportError, AttributeError, KeyError) as error:
        log.debug("Ray Data starts its own actors: %s", error)
        return None
    return ray_data_actors


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
