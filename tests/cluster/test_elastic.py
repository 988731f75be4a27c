"""Pools of replicas follow the nodes of a cluster: they start from none, grow, share a GPU, shrink, and end right.

The nodes are raylets of this machine whose CPUs and GPUs are numbers; the head has neither.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NUM_ROWS = 120
STORE = 10**8
SECONDS = 90  # for what takes Ray 30 at most: to look for new nodes, and to start a replica


class Job:
    """A paced job (paced_job.py) on a cluster."""

    def __init__(self, folder: Path, address: str, checkpoint: str, sentences: list[str], **engine: Any) -> None:
        (folder / "corpus").mkdir(parents=True)
        self.folder, self.output = folder, folder / "out"
        pq.write_table(pa.table({"id": range(NUM_ROWS), "text": sentences}), folder / "corpus" / "rows.parquet")
        job = {
            "task": "feature-extraction",
            "model": checkpoint,
            "input": {"paths": [str(folder / "corpus")], "rows_per_unit": 1},
            "output": {"path": str(self.output)},
            "engine": {"device": "cpu", "reserve_gpus": True, **engine},
            "limits": {"quiet_seconds": 5.0},
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(job))
        self.events: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.paced_job", str(folder / "job.yaml"), str(folder)],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": address}, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(b"{"):
                self.events.append(json.loads(line))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def batches(self, after: float = 0.0) -> list[dict[str, Any]]:
        """What replicas told of the batches that they began."""
        try:
            lines = (self.folder / "replicas").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [told for told in map(json.loads, lines) if told["at"] > after]

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + SECONDS
        while not (found := condition()):
            assert self._process.poll() is None, self.story(what)
            assert time.monotonic() < deadline, self.story(what)
            time.sleep(0.2)
        return found

    def story(self, what: str) -> str:
        """What is known where something did not come."""
        nodes = Counter(told["node"] for told in self.batches(after=time.time() - 10))
        return f"{what} is missing; last batches by node: {dict(nodes)}; last events: {self.events[-3:]}"

    def ends(self) -> None:
        """Let the rest be computed without waiting: every row is there once."""
        (self.folder / "fast").touch()
        assert self._process.wait(SECONDS) == 0, self.story("a good end")
        self._reader.join()
        assert self.of("finished")[0]["totals"]["ok"] == NUM_ROWS
        assert sorted(pq.read_table(self.output)["id"].to_pylist()) == list(range(NUM_ROWS))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs."""
    from ray.cluster_utils import Cluster

    few_workers = {"prestart_worker_first_driver": False}
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False, "_system_config": few_workers}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def start(cluster: Any, checkpoint: str, make_sentences: Any, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start(**engine: Any) -> Job:
        jobs.append(Job(tmp_path / str(len(jobs)), cluster.address, checkpoint, make_sentences(NUM_ROWS), **engine))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


def waiting_gpus(address: str) -> float:
    """GPUs that actors wait for, as Ray's autoscaler sees it."""
    return sum(pending.count * gpus_in(pending.request) for pending in state(address).pending_resource_requests)


def wanted_gpus(address: str) -> float:
    """GPUs that the cluster is asked to have, as Ray's autoscaler reads it."""
    from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
    from ray._raylet import GcsClient

    wanted = GcsClient(address).internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL)
    return sum(bundle.get("GPU", 0) for bundle in json.loads(wanted or "[]"))


def gpus_in(request: Any) -> float:
    return float(dict(request.resources_bundle).get("GPU", 0))


def state(address: str) -> Any:
    from ray._raylet import GcsClient
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    return get_cluster_resource_state(GcsClient(address))


@pytest.fixture
def join(cluster: Any) -> Iterator[Callable[[int], Any]]:
    """Let a node with some CPUs and one GPU join the cluster; those that are left at the end leave."""
    joined = []

    def join(num_cpus: int) -> Any:
        joined.append(cluster.add_node(num_cpus=num_cpus, num_gpus=1, object_store_memory=STORE))
        return joined[-1]

    yield join
    for node in joined:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)


def test_a_job_starts_without_a_node_and_two_replicas_share_the_gpu_and_the_cpus_of_the_one_that_comes(
    cluster: Any, start: Callable[..., Job], join: Callable[[int], Any]
) -> None:
    """A start without a GPU was refused."""
    job = start(replicas={"min": 2, "max": 2}, gpus_per_replica=0.5)
    (waiting, *_) = job.until(lambda: job.of("waiting"), "a word at once")
    assert waiting["seconds"] < 5
    assert "a replica needs 0.5 GPUs, the cluster has 0 GPUs, room for 0 of 2" in waiting["lacking"]
    assert 29 * 60 < waiting["seconds_left"] <= 30 * 60
    job.until(lambda: waiting_gpus(cluster.address) == 1, "two replicas that wait for half a GPU each")
    node = join(4)
    job.until(lambda: len({told["process"] for told in job.batches()}) == 2, "batches of both replicas")
    assert {(told["node"], told["threads"]) for told in job.batches()} == {(node.node_id, 2)}
    job.ends()


def test_a_wait_that_is_too_long_ends_with_what_is_asked_and_what_is_there(
    start: Callable[..., Job], join: Callable[[int], Any]
) -> None:
    join(2)
    job = start(tensor_parallel=2, replicas={"min": 1, "max": 2, "wait_minutes": 0.05})
    job.until(lambda: job.of("error"), "an error")
    (error,) = job.of("error")
    assert error["kind"] == "JobError"
    assert error["message"].startswith(
        "No node that holds a replica came within 0.05 minutes (engine.replicas.wait_minutes): a replica of 2 ranks "
        "needs 2 GPUs, the cluster has 1 GPU, room for 0 of 1. Use fewer ranks, add GPUs, or wait longer."
    )


@pytest.mark.slow
def test_a_pool_grows_with_the_cluster_and_shrinks_with_it(
    cluster: Any, start: Callable[..., Job], join: Callable[[int], Any]
) -> None:
    """Two GPUs that joined after the start idled to the end."""
    first = join(2)
    job = start(replicas={"min": 1, "max": 4})
    job.until(job.batches, "a batch of the first node")
    job.until(lambda: wanted_gpus(cluster.address) >= 2, "a request for more nodes")
    others = [join(num_cpus) for num_cpus in (4, 1, 1)]
    ids = {node.node_id for node in (first, *others)}
    job.until(lambda: {told["node"] for told in job.batches()} == ids, "batches of all four nodes")
    threads = {told["node"]: told["threads"] for told in job.batches()}
    assert [threads[node.node_id] for node in (first, *others)] == [2, 4, 1, 1]

    for node in (first, *others[1:]):
        cluster.remove_node(node)
    left_at = time.time()
    job.until(lambda: len(job.batches(after=left_at)) > 2, "the node that is left goes on")
    assert {told["node"] for told in job.batches(after=left_at + 1)} == {others[0].node_id}
    job.ends()


@pytest.mark.slow
def test_replicas_that_span_nodes_start_one_after_the_other_as_nodes_come(
    start: Callable[..., Job], join: Callable[[int], Any]
) -> None:
    join(2)
    job = start(tensor_parallel=2, replicas={"min": 1, "max": 2})
    job.until(lambda: job.of("waiting"), "a word at once")
    join(2)
    job.until(job.batches, "a batch of the first replica, while the second has no nodes")
    for _ in range(2):
        join(2)
    job.until(lambda: len({told["process"] for told in job.batches()}) == 2, "batches of both replicas")
    job.ends()
