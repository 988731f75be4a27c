"""Replicas of two ranks on the GPUs of one node or of two, where the GPUs are logical and the products a CPU's.

Whatever is killed, the job ends right, and nothing is left on a cluster that lives on.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.processes import with_setting

ROOT = Path(__file__).resolve().parents[2]
MARK = "BATCHLOOM_TEST_CLUSTER"  # in the environment of all that the cluster and the job start
NUM_ROWS, ROWS_PER_UNIT = 400, 10


@pytest.fixture
def temporary_folder(monkeypatch) -> Iterator[Path]:
    """For all that runs; its name is short, as Ray's sockets go there, whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="b", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setenv(MARK, secrets.token_hex(8))
        yield Path(folder)


@pytest.fixture
def address(temporary_folder: Path) -> Iterator[str]:  # noqa: ARG001  # it comes first
    """A cluster of one node with four logical GPUs."""
    from ray.cluster_utils import Cluster

    resources = {"num_cpus": 4, "num_gpus": 4, "object_store_memory": 10**8, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=resources)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def nodes(temporary_folder: Path) -> Iterator[Any]:  # noqa: ARG001  # it comes first
    """A cluster whose head has no GPU, and three nodes of one: no node has two."""
    from ray.cluster_utils import Cluster

    resources = {"object_store_memory": 10**8, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **resources})
    cluster.gpu_nodes = [cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=10**8) for _ in range(3)]
    yield cluster
    cluster.shutdown()


@pytest.fixture
def job_file(tmp_path: Path, checkpoint: str, make_sentences) -> Path:
    (tmp_path / "corpus").mkdir()
    table = pa.table({"id": range(NUM_ROWS), "text": make_sentences(NUM_ROWS)})
    pq.write_table(table, tmp_path / "corpus" / "rows.parquet", row_group_size=ROWS_PER_UNIT)
    job = {
        "task": "summarization",
        "model": checkpoint,
        "input": {"paths": [str(tmp_path / "corpus")], "rows_per_unit": ROWS_PER_UNIT},
        "output": {"path": str(tmp_path / "out"), "rows_per_part": ROWS_PER_UNIT},
        "generation": {"num_beams": 4, "max_length": 60, "min_length": 50},
        "engine": {"device": "cpu", "reserve_gpus": True, "tensor_parallel": 2, "replicas": {"min": 2, "max": 2}},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def batchloom(*arguments: str, **variables: str) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-m", "batchloom", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def running(part_of_command: str) -> list[int]:
    """Processes of this test, by what their command lines say."""
    processes = with_setting(f"{MARK}={os.environ[MARK]}")
    return [process for process, command in processes.items() if part_of_command in command]


def wait_until(condition: Callable[[], object], seconds: float, otherwise: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.1)


def more_parts(process: "subprocess.Popen[bytes]", output: Path, num_parts: int) -> Callable[[], bool]:
    """A condition for wait_until; more than a few parts may be on their way when something is killed."""
    before = len(list(output.glob("*.parquet")))

    def are_there() -> bool:
        assert process.poll() is None, process.stdout.read().decode()
        return len(list(output.glob("*.parquet"))) >= before + num_parts

    return are_there


def held_gpus(address: str) -> float:
    """GPUs of the cluster that somebody holds."""
    code = (
        "import ray; ray.init(log_to_driver=False, logging_level='ERROR');"
        "print(ray.cluster_resources()['GPU'] - ray.available_resources().get('GPU', 0))"
    )
    environment = os.environ | {"RAY_ADDRESS": address}
    asked = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(asked.stdout.split()[-1])


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


@pytest.mark.slow
def test_ranks_on_two_nodes_survive_the_loss_of_a_node_and_nothing_is_held_after_a_killed_driver(
    job_file: Path, nodes: Any
) -> None:
    """One replica of two ranks; when a node goes, with one of them, the third node takes its place."""
    output, settings = job_file.parent / "out", ("--set", "engine.replicas.min=1", "--set", "engine.replicas.max=1")
    address = nodes.address

    process = batchloom("run", str(job_file), *settings, RAY_ADDRESS=address)
    wait_until(more_parts(process, output, 2), 120)
    assert held_gpus(address) == 2
    (rank,) = running("ray::OtherRank")
    node = node_of(rank, nodes.gpu_nodes)
    nodes.remove_node(node, allow_graceful=False)
    wait_until(more_parts(process, output, 6), 120)
    os.kill(running("ray::FirstRank")[0], signal.SIGKILL)
    wait_until(more_parts(process, output, 6), 120)

    process.kill()
    process.wait()
    wait_until(lambda: held_gpus(address) == 0, 30)  # the group is gone too: it alone would hold them
    wait_until(lambda: not running("ray::FirstRank") + running("ray::OtherRank") + running("Infer"), 30)

    process = batchloom("run", str(job_file), *settings, RAY_ADDRESS=address)
    printed = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, printed
    assert held_gpus(address) == 0
    verified = batchloom("verify", str(output))
    printed = verified.communicate(timeout=60)[0].decode()
    assert verified.returncode == 0, printed


def node_of(process_id: int, nodes: list[Any]) -> Any:
    """The node whose raylet started a process."""
    parent = int(Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return next(node for node in nodes if parent in {raylet.process.pid for raylet in node.all_processes["raylet"]})


def test_rank_actor_and_driver_are_killed_in_turn_and_the_job_ends_right(
    job_file: Path, address: str, temporary_folder: Path
) -> None:
    output = job_file.parent / "out"

    def nothing_is_left() -> bool:
        ranks_and_replicas = running("batchloom.models.ranks.follower") + running("Infer") + running("pipelines")
        files = [*temporary_folder.glob("batchloom-*"), *(shared_memory() - before)]
        left[:] = [*ranks_and_replicas, *files]
        return not left

    before, left = shared_memory(), []
    process = batchloom("run", str(job_file), RAY_ADDRESS=address)
    wait_until(more_parts(process, output, 2), 120)
    wait_until(lambda: len(running("batchloom.models.ranks.follower")) == len(running("Infer")) == 2, 60)
    assert held_gpus(address) == 4

    os.kill(running("batchloom.models.ranks.follower")[0], signal.SIGKILL)
    wait_until(more_parts(process, output, 6), 60)
    wait_until(lambda: len(running("batchloom.models.ranks.follower")) == len(running("Infer")) == 2, 60)

    os.kill(running("Infer")[0], signal.SIGKILL)
    wait_until(lambda: len(running("batchloom.models.ranks.follower")) == 1, 10)
    wait_until(more_parts(process, output, 6), 60)

    process.kill()
    process.wait()
    wait_until(nothing_is_left, 30, lambda: left)
    assert held_gpus(address) == 0

    process = batchloom("run", str(job_file), RAY_ADDRESS=address)
    printed = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, printed
    wait_until(nothing_is_left, 30, lambda: left)
    verified = batchloom("verify", str(output))
    printed = verified.communicate(timeout=60)[0].decode()
    assert verified.returncode == 0, printed
    assert sorted(pq.read_table(output)["id"].to_pylist()) == list(range(NUM_ROWS))


def wait_for_line(process: subprocess.Popen, part: bytes, until: float) -> None:
    """Read what a process prints up to a line with this part, which must come in time."""
    for line in process.stdout:
        if part in line:
            assert time.monotonic() < until, line
            return
    pytest.fail(f"the job ended without the words {part.decode()!r}")


def test_a_cluster_without_its_gpus_is_told_of_within_seconds_and_the_job_goes_on_with_new_ones(
    job_file: Path,
    temporary_folder: Path,  # noqa: ARG001  # for the cluster's sockets
) -> None:
    """A job whose GPU nodes had all gone said nothing for 150 seconds."""
    from ray.cluster_utils import Cluster

    resources = {"object_store_memory": 10**8}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, **resources})
    gpu_node = cluster.add_node(num_cpus=1, num_gpus=1, **resources)
    one = [f"engine.{key}=1" for key in ("tensor_parallel", "replicas.min", "replicas.max")]
    sets = [word for setting in (*one, "limits.quiet_seconds=5.0") for word in ("--set", setting)]
    process = batchloom("run", str(job_file), *sets, RAY_ADDRESS=cluster.address)
    try:
        wait_until(more_parts(process, job_file.parent / "out", 2), 120)
        gone_at = time.monotonic()
        cluster.remove_node(gpu_node, allow_graceful=False)
        # Ray takes a killed node for alive until five checks of it, three seconds apart, have failed after ten each.
        wait_for_line(
            process,
            b"replica needs 1 GPU, the cluster has 0 GPUs, room for 0 of 1; 1 of 2 nodes are gone",
            until=gone_at + 75,
        )
        cluster.add_node(num_cpus=1, num_gpus=1, **resources)
        printed = process.communicate(timeout=300)[0].decode()
        assert process.returncode == 0, printed
        assert sorted(pq.read_table(job_file.parent / "out")["id"].to_pylist()) == list(range(NUM_ROWS))
    finally:
        process.kill()
        cluster.shutdown()
