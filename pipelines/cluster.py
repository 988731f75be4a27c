"""The process's connection to Ray, and the nodes behind it. Jobs that run at the same time in one process share it."""

import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._common.utils import get_default_ray_temp_dir
from ray._private import auto_init_hook, state, utils, worker
from ray.data import DataContext

from batchloom.pipelines import own_ray
from batchloom.pipelines.errors import ConfigError, JobError, PipelineError
from batchloom.pipelines.joining import begin_showing_token, cluster_to_join
from batchloom.pipelines.replicas.placement import Cluster, Node, NodeKind

LAUNCHERS_FILE = "~/ray_bootstrap_config.yaml"
TOKEN_HINT = (  # Ray tells it in a log alone
    "Something listens there, and may want a token, for which this user has none: set RAY_AUTH_MODE=token, and "
    "RAY_AUTH_TOKEN to that of the cluster (on its head's machine it is in ~/.ray/auth_token). "
)
HEAD = "node:__internal_head__"  # a resource of the head alone
DATA_SETTINGS = {
    "target_max_block_size": 1,  # a block for every unit, so that the next stage gets it at once
    "raise_original_map_exception": True,
    "enable_progress_bars": False,
    "print_on_execution_start": False,
}


@dataclass
class _Connection:
    """Ray has one connection a process: the first job opens it, and the last one to end closes it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    num_jobs: int = 0
    closing: ExitStack = field(default_factory=ExitStack)


_CONNECTION = _Connection()


@contextmanager
def connected() -> Iterator[None]:
    """Connect to Ray with our settings: the caller's connection, RAY_ADDRESS's cluster, or a local one that we end.

    Raises: ConfigError where RAY_ADDRESS names no cluster that answers; JobError where no Ray can be started here.
    """
    connection = _CONNECTION
    with connection.lock:
        if not connection.num_jobs:
            with ExitStack() as opened:
                opened.enter_context(_initialized())
                opened.enter_context(_data_settings())
                connection.closing = opened.pop_all()
        connection.num_jobs += 1
    try:
        yield
    finally:
        with connection.lock:
            connection.num_jobs -= 1
            if not connection.num_jobs:
                connection.closing.close()


def look() -> Cluster:
    """Return the nodes that are there, and those that may come: none, to a Ray that this process started."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    resources = [node["Resources"] for node in nodes]
    started = worker._global_node
    if started is not None and started.is_head():
        return Cluster(resources, coming=())
    return Cluster(resources, _told_by_ray() or _told_by_launcher(nodes))


def _told_by_ray() -> list[NodeKind] | None:
    """Return the kinds of nodes that an autoscaler adds, where it tells Ray: some do."""
    config = state.state.get_cluster_config()
    if config is None:
        return None
    return [
        NodeKind(dict(kind.resources), math.inf if kind.max_count < 0 else kind.max_count)
        for kind in config.node_group_configs
    ]


def _told_by_launcher(nodes: Sequence[Mapping[str, Any]]) -> list[NodeKind] | None:
    """Return the kinds of nodes that `ray up` has written to the head of its cluster, where this is the head."""
    here = ray.get_runtime_context().get_node_id()
    file = Path(os.path.expanduser(LAUNCHERS_FILE))  # Path's own raises where a user has no home
    if not file.exists() or not any(node["NodeID"] == here and HEAD in node["Resources"] for node in nodes):
        return None
    config = yaml.safe_load(file.read_text())
    return [
        NodeKind(kind.get("resources") or {}, kind.get("max_workers", config.get("max_workers", 0)))
        for kind in config.get("available_node_types", {}).values()
    ]


def this_node() -> tuple[Node, list[Node]]:
    """Return what the node of this process offers, and what each node that is there does."""
    nodes, here = ray.nodes(), ray.get_runtime_context().get_node_id()
    this = next(node["Resources"] for node in nodes if node["NodeID"] == here)  # Ray may already take it for gone
    return this, [node["Resources"] for node in nodes if node["Alive"]]


def fetched(value: Any) -> Any:
    """Return what a task answers, where `value` is a reference to that; else the value itself.

    Raises: what the task raised.
    """
    if not isinstance(value, ray.ObjectRef):
        return value
    try:
        return ray.get(value)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def stay_disconnected() -> None:
    """Keep this process's threads from starting a Ray of their own, as the first call of Ray without a connection does.

    For threads that still wait for a Ray that is gone: what they call next comes after `ray.shutdown`.
    """
    auto_init_hook.enable_auto_connect = False


@contextmanager
def _initialized() -> Iterator[None]:
    if ray.is_initialized():  # the caller's: it stays
        yield
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # errors that matter arrive as exceptions
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    over, joins = threading.Event(), True
    try:
        joins = cluster_to_join() is not None
        if threading.current_thread() is threading.main_thread():
            with _callers_handler():
                _start(joins)
        else:
            _kept_by_a_thread(lambda: _start(joins), over)
    except PipelineError:
        raise
    except BaseException as error:  # Ray raises what it likes, Exception itself where a raylet does not come up
        _shut_down()  # also where it is interrupted: servers would stay as long as this process
        if not isinstance(error, Exception):
            raise
        raise (_not_joined(error) if joins else _not_started(error)) from error
    try:
        with nullcontext() if joins else own_ray.without_actors():
            yield
    finally:
        _shut_down()
        over.set()


def _not_joined(error: Exception) -> ConfigError:
    named = os.environ.get("RAY_ADDRESS")
    which = f"that RAY_ADDRESS={named!r} names" if named else "that this machine was joined to by `ray start`"
    way_out = "unset it" if named else "leave it by `ray stop`"
    lacks_token = isinstance(error, ConnectionError) and os.environ.get("RAY_AUTH_MODE") != "token"
    return ConfigError(
        f"Cannot connect to the Ray cluster {which}: {_words(error)}. {TOKEN_HINT if lacks_token else ''}Set "
        f"RAY_ADDRESS to the address of a running cluster (host:6379), or {way_out}: the job then runs on this machine "
        "alone."
    )


def _not_started(error: Exception) -> JobError:
    return JobError(
        f"Ray could not be started on this machine: {_words(error)}. Look for limits on open files and processes "
        "(ulimit -n, -u, -v), for a lack of memory or of room in /dev/shm and in Ray's folder "
        f"({get_default_ray_temp_dir()}; RAY_TMPDIR changes it), and for other work that leaves it no time."
    )


def _words(error: Exception) -> str:
    """Return what Ray says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(" .")


def _start(joins: bool) -> None:
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
    if not joins:
        own_ray.start(**options)
        return
    try:
        ray.init(**options)
    except ConnectionError:  # after 20 s; whether it was for want of a token Ray says in a log alone
        if not begin_showing_token():
            raise
        _shut_down()
        ray.init(**options)


def _kept_by_a_thread(start: Callable[[], None], over: threading.Event) -> None:
    """Start Ray on a thread that lives until `over` is set, and return when it is started. Raises: what `start` raises.

    Linux ends Ray's processes with the thread that started them, and that of one job may end before another job.
    """
    started: Future[None] = Future()

    def work() -> None:
        try:
            start()
        except BaseException as error:  # handed over
            started.set_exception(error)
        else:
            started.set_result(None)
            over.wait()

    threading.Thread(target=work, daemon=True, name="ray").start()
    started.result()


@contextmanager
def _callers_handler() -> Iterator[None]:
    """Keep the caller's handler of SIGTERM on the main thread.

    Ray's Python side replaces it by some that exit with 15 or 1, its C++ side by one that prints a stack and aborts.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler):
        yield
        return
    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before
        signal.signal(signal.SIGTERM, handler)


class _Closing:
    """Ray's core worker, which has no methods any more as soon as it is shut down.

    A thread of Ray Data's may end just then and drop its references to objects, and a core worker that is called
    meanwhile ends the process, with exit code 1. A method that is missing, Ray ignores there.
    """

    def __init__(self, core_worker: Any) -> None:
        self._core_worker = core_worker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core_worker, name)

    def shutdown_driver(self) -> None:
        core_worker, self._core_worker = self._core_worker, None
        core_worker.shutdown_driver()


def _shut_down() -> None:
    ours = worker.global_worker
    if ours.connected:
        ours.core_worker = _Closing(ours.core_worker)  # type: ignore[attr-defined]
    ray.shutdown()


@contextmanager
def _data_settings() -> Iterator[None]:
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    before = {name: getattr(context, name) for name in DATA_SETTINGS}
    for name, value in DATA_SETTINGS.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
