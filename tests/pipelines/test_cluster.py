"""The connection to Ray: shared by the jobs of a process, and open to this machine alone."""

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchloom.pipelines import own_ray
from batchloom.pipelines.cluster import HEAD, _kept_by_a_thread, connected, look
from batchloom.pipelines.errors import ConfigError, JobError
from batchloom.pipelines.replicas.placement import NodeKind

TWO_JOBS = """
import json, os, sys, threading
from contextlib import suppress
from pathlib import Path
import ray
import batchloom
from batchloom.pipelines.metrics import UnitDone

job, folder = json.loads(sys.argv[1]), sys.argv[2]
ended, listening = {}, set()

def descendants(process):
    found = [process]
    with suppress(OSError):  # it has ended since
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += descendants(int(child))
    return found

def sockets(process):
    with suppress(OSError):
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            yield os.readlink(descriptor).removeprefix("socket:[").rstrip("]")

def look(event):
    if isinstance(event, UnitDone):
        ours = {inode for process in descendants(os.getpid()) for inode in sockets(process)}
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == "0A" and rest[5] in ours:
                    listening.add(local.partition(":")[0])

def run(name):
    try:
        ended[name] = batchloom.run({**job, "output": {"path": f"{folder}/{name}"}}, on_event=look).totals["ok"]
    except BaseException as error:
        ended[name] = repr(error)

threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps([ended, sorted(listening), ray.is_initialized()]))
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}  # as /proc writes them


@pytest.mark.skipif(sys.platform != "linux", reason="sockets are read from /proc")
def test_two_jobs_of_one_process_share_a_ray_that_other_machines_cannot_reach(
    checkpoint: str, corpus: Path, tmp_path: Path
) -> None:
    """The second of two threads died of "Perhaps you called ray.init twice", or lost the Ray that the first one shut
    down; and Ray's servers listened on all interfaces."""
    job = {
        "task": "summarization",
        "model": checkpoint,
        "input": {"paths": [str(corpus)], "rows_per_unit": 40},
        "generation": {"num_beams": 1, "max_length": 6, "min_length": 1},
        "engine": {"device": "cpu"},
    }
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", TWO_JOBS, json.dumps(job), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    ended, listening, is_initialized = (
        json.loads(done.stdout.splitlines()[-1]) if done.stdout else pytest.fail(done.stderr)
    )
    assert ended == {"one": 75, "two": 75}
    assert not is_initialized
    assert listening
    assert set(listening) <= LOOPBACK


ON_A_RAY_OF_ITS_OWN = """
import json, sys, threading
from contextlib import suppress
from pathlib import Path
import ray
from batchloom.pipelines import cluster

class Twice:
    def __call__(self, batch):
        return {"id": 2 * batch["id"]}

def names(process):
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):  # it has ended since
            for child in (task / "children").read_text().split():
                yield Path(f"/proc/{child}/cmdline").read_text().replace(chr(0), " ")
                yield from names(child)

rows = []
for _ in range(2):
    with cluster.connected():
        data = ray.data.range(3).map_batches(Twice, concurrency=1, batch_size=None)
        rows.append(sorted(row["id"] for row in data.take_all()))
        actors = ray.util.list_named_actors(all_namespaces=True)
        processes = " ".join(names("self"))
print(json.dumps([rows, actors, processes, [thread.name for thread in threading.enumerate()]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")
def test_a_ray_of_its_own_has_no_servers_and_actors_that_nobody_asks() -> None:
    """Each took a second of a core while replicas started: dashboard, two monitors, and three actors of Ray Data's."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", ON_A_RAY_OF_ITS_OWN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    rows, actors, processes, threads = (
        json.loads(done.stdout.splitlines()[-1]) if done.stdout else pytest.fail(done.stderr)
    )
    assert rows == [[0, 2, 4]] * 2
    assert actors == []
    assert "raylet" in processes
    assert "ray_worker.py" in processes
    assert "setup_worker.py" not in processes  # each worker imported Ray twice
    assert not [name for name in ("dashboard.py", "monitor.py", "log_monitor.py") if name in processes]
    assert not [name for name in threads if "tick" in name]  # nothing asks a Ray that is gone


INTERRUPTED = """
import json, time
from contextlib import suppress
from pathlib import Path
import ray
from ray._private import services, worker
from batchloom.pipelines import cluster

def interrupt(*_, **__):
    raise KeyboardInterrupt

def servers():
    for child in Path("/proc/self/task").glob("*/children"):
        for process in child.read_text().split():
            with suppress(OSError):  # it has ended since
                yield from Path(f"/proc/{process}/cmdline").read_text().split(chr(0))[:1]  # of the dead it is empty

left = []
for owner, name in ((services, "start_raylet"), (worker, "connect")):
    before = getattr(owner, name)
    setattr(owner, name, interrupt)
    try:
        with cluster.connected():
            pass
    except KeyboardInterrupt:
        pass
    setattr(owner, name, before)
    deadline = time.monotonic() + 10
    while any(servers()) and time.monotonic() < deadline:
        time.sleep(0.1)
    left.append([ray.is_initialized(), *filter(None, servers())])
print(json.dumps(left))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")
def test_an_interrupted_start_leaves_no_server_in_the_process() -> None:
    """Ctrl-C in a notebook while Ray started its servers left those that were there, until the notebook ended; so did
    a raylet that did not come up."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[False], [False]], "before and after all servers are there"


DROPPED_WHILE_IT_CLOSES = """
import threading, time
import ray
from batchloom.pipelines import cluster

def drop():
    closing.wait()
    while not closed.is_set():
        references.pop()
        time.sleep(0.0005)

closing, closed = threading.Event(), threading.Event()
thread = threading.Thread(target=drop)
with cluster.connected():
    one = ray.put(1).binary()
    references = [ray.ObjectRef(one) for _ in range(40_000)]
    thread.start()
    closing.set()
closed.set()
thread.join()
print(ray.is_initialized(), bool(references))
"""


def test_a_thread_that_drops_references_while_ray_is_shut_down_does_not_end_the_process() -> None:
    """Threads of Ray Data's do that after a signal: the process had exit code 1, without a word."""
    command = [sys.executable, "-c", DROPPED_WHILE_IT_CLOSES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "False True\n"), done.stderr


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # by the tests before
    monkeypatch.setattr("batchloom.pipelines.cluster._shut_down", lambda: None)  # of what they started
    with pytest.raises(ConfigError, match="RAY_ADDRESS='nonsense'"), connected():
        pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.1"), "started with: Ray: 2.1. Set"),
        (ConnectionError("refused"), "names: ConnectionError: refused. Something listens there, and may want a token"),
    ],
)
def test_whatever_keeps_a_job_from_a_cluster_is_said_with_what_to_change(monkeypatch, error, said) -> None:
    """Another version of Ray than the cluster's ended the command with a traceback."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert said in refusal(monkeypatch, ConfigError, "10.0.0.1:6379", error)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "RAY_AUTH_MODE" not in refusal(monkeypatch, ConfigError, "10.0.0.1:6379", error)


SHOWN = """
import os
from batchloom.pipelines import joining
print(joining.begin_showing_token(), os.environ.get("RAY_AUTH_MODE"), joining.begin_showing_token())
"""


@pytest.mark.parametrize(
    ("token", "mode", "shown"),
    [("a" * 64, None, "True token"), (None, None, "False None"), ("a" * 64, "disabled", "False disabled")],
)
def test_a_token_that_this_user_has_is_shown_once_it_may_be_asked_for(tmp_path: Path, token, mode, shown) -> None:
    """`ray start` after a job on the same machine made a cluster that the next job could not join."""
    if token is not None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray/auth_token").write_text(token)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path)} | ({} if mode is None else {"RAY_AUTH_MODE": mode})
    command = [sys.executable, "-c", SHOWN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (f"{shown} False\n", "")


@pytest.mark.parametrize(("has_token", "most"), [(True, 2), (False, 1)])
def test_a_cluster_that_refuses_is_asked_again_with_a_token_if_there_is_one(monkeypatch, has_token, most) -> None:
    asked = []

    def refuse(**_: Any) -> None:
        asked.append(1)
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    for name, value in {
        "batchloom.pipelines.cluster.cluster_to_join": lambda: "10.0.0.1:6379",
        "batchloom.pipelines.cluster.begin_showing_token": lambda: has_token,
        "ray.is_initialized": lambda: False,
        "ray.init": refuse,
        "batchloom.pipelines.cluster._shut_down": lambda: None,
    }.items():
        monkeypatch.setattr(name, value)
    with pytest.raises(ConfigError, match="Cannot connect to the Ray cluster"), connected():
        pass
    assert len(asked) == most


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup."),
        ValueError("Attempting to cap object store memory usage at 60000000 bytes, but the minimum is 78643200."),
        PermissionError(13, "Permission denied", "ray"),
    ],
)
def test_a_ray_that_cannot_be_started_here_is_no_cluster_that_rayaddress_names(monkeypatch, error) -> None:
    """A raylet that did not come up was a traceback, and a machine without memory `RAY_ADDRESS=None`."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    said = refusal(monkeypatch, JobError, None, error)
    assert said.startswith(f"Ray could not be started on this machine: {type(error).__name__}: ")
    assert str(error).rstrip(".") in said
    assert "ulimit -n" in said
    assert "RAY_ADDRESS" not in said


def refusal(monkeypatch, kind: type[Exception], address: str | None, error: Exception) -> str:
    """What is said where Ray does not start for some reason."""

    def start(**_: Any) -> None:
        raise error

    monkeypatch.setattr("batchloom.pipelines.cluster.cluster_to_join", lambda: address)
    monkeypatch.setattr("batchloom.pipelines.cluster.begin_showing_token", lambda: False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr("batchloom.pipelines.cluster._shut_down", lambda: None)
    with pytest.raises(kind) as caught, connected():
        pass
    return str(caught.value)


def test_the_thread_that_starts_ray_lives_until_the_last_job_is_over() -> None:
    """Guards a bug: Linux ends Ray's processes with the thread that started them, which was the first job's."""
    over, threads = threading.Event(), []
    _kept_by_a_thread(lambda: threads.append(threading.current_thread()), over)
    (keeper,) = threads
    assert keeper is not threading.current_thread()
    assert keeper.is_alive()
    over.set()
    keeper.join(10)
    assert not keeper.is_alive()


def test_what_goes_wrong_when_ray_starts_is_told_to_the_job() -> None:
    def fail() -> None:
        raise ConnectionError("nobody there")

    with pytest.raises(ConnectionError, match="nobody there"):
        _kept_by_a_thread(fail, threading.Event())


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """A cluster of a head and a node that has left, as Ray tells of it."""
    from ray._private import state, worker
    from ray.core.generated import autoscaler_pb2

    nodes = [
        {"NodeID": "head", "Alive": True, "Resources": {"CPU": 2.0, HEAD: 1.0}},
        {"NodeID": "gone", "Alive": False, "Resources": {"GPU": 8.0}},
    ]

    def cluster(
        is_ours: bool = False, here: str = "head", kinds: list[Any] | None = None, launcher: Any = None
    ) -> None:
        groups = [autoscaler_pb2.NodeGroupConfig(resources=one, max_count=most) for one, most in kinds or ()]
        config = None if kinds is None else autoscaler_pb2.ClusterConfig(node_group_configs=groups)
        if launcher is not None:
            (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps(launcher))
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setattr("ray.nodes", lambda: nodes)
        monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: here))
        monkeypatch.setattr(worker, "_global_node", SimpleNamespace(is_head=lambda: is_ours))
        monkeypatch.setattr(state.state, "get_cluster_config", lambda: config)

    return cluster


LAUNCHER = {
    "max_workers": 5,
    "available_node_types": {
        "head": {"resources": {"CPU": 2}, "max_workers": 0},
        "gpus": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 3},
        "others": {},
    },
}


@pytest.mark.parametrize(
    ("told", "coming"),
    [
        ({"is_ours": True}, []),  # nobody can join a Ray that the job started
        ({}, None),
        ({"kinds": []}, None),
        (
            {"kinds": [({"CPU": 8, "GPU": 1}, 3), ({"CPU": 64}, -1)]},
            [({"CPU": 8, "GPU": 1}, 3), ({"CPU": 64}, math.inf)],
        ),
        ({"launcher": LAUNCHER}, [({"CPU": 2}, 0), ({"CPU": 8, "GPU": 1}, 3), ({}, 5)]),
        ({"launcher": LAUNCHER, "here": "elsewhere"}, None),  # of another cluster, that this machine was the head of
    ],
)
def test_what_may_come_is_nothing_unknown_or_what_an_autoscaler_tells(
    cluster: Callable[..., None], told: dict[str, Any], coming: list[Any] | None
) -> None:
    cluster(**told)
    found = look()
    assert found.nodes == [{"CPU": 2.0, HEAD: 1.0}]
    expected = None if coming is None else [NodeKind(resources, most) for resources, most in coming]
    assert (None if found.coming is None else list(found.coming)) == expected
    assert found.is_closed == ("is_ours" in told)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"TMPDIR": "rel"}, r"'rel/ray': it is a relative path, .* Set RAY_TMPDIR .*\(TMPDIR is 'rel'\)"),
        ({"TMPDIR": "/t/é"}, r"'/t/é/ray': it has letters beyond ASCII, .* Set RAY_TMPDIR .*\(TMPDIR is '/t/é'\)"),
        ({"TMPDIR": "/tmp", "RAY_TMPDIR": "x"}, r"'x/ray': it is a relative path.*\(RAY_TMPDIR is 'x'\)"),
    ],
)
def test_a_folder_that_ray_cannot_use_is_said_before_it_starts(monkeypatch, variables, said) -> None:
    """Of a relative one Ray said after half a minute that a node timed out, of others that a codec failed."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        own_ray.start()
