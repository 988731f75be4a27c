"""`batchloom submit` onto a Ray head of its own, started and ended here, with a token as Ray 2.60 may demand."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from batchloom import pipelines

ROOT = Path(__file__).resolve().parents[2]
MARK = "BATCHLOOM_TEST_HEAD"  # in the environment of the head, so in that of every process it starts


@dataclass(frozen=True)
class Head:
    address: str
    token: str


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def processes_of(mark: str) -> list[int]:
    """Every process that inherited the mark, whoever its parent is by now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in environment.split(b"\0"):
            found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc to be sure that no process of the head is left")
    token, mark = secrets.token_hex(24), secrets.token_hex(8)
    folder = tempfile.mkdtemp(prefix="loom-")  # short: Ray puts sockets below it
    names = ["port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port",
             "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port"]  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    environment = os.environ | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, MARK: mark, "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats",
               "--temp-dir", folder, "--num-cpus", "2", "--object-store-memory", "100000000",
               "--dashboard-host", "127.0.0.1", "--node-ip-address", "127.0.0.1"]  # fmt: skip
    command += [f"--{name}={port}" for name, port in ports.items()]
    log = Path(folder, "head.log")
    with log.open("w") as file:
        started = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        wait_for_dashboard(address, token, started, log)
        yield Head(address, token)
    finally:
        end(mark)
        started.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
    assert processes_of(mark) == []


def wait_for_dashboard(address: str, token: str, started: "subprocess.Popen[bytes]", log: Path) -> None:
    request = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and started.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"The Ray head did not come up:\n{log.read_text()[-2000:]}")


def end(mark: str) -> None:
    """Ask, then insist. `ray stop` would end the clusters of others on this machine too."""
    deadline = time.monotonic() + 3
    for pid in processes_of(mark):
        os.kill(pid, signal.SIGTERM)
    while processes_of(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    while left := processes_of(mark):
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)


@pytest.fixture
def submit(tmp_path: Path, checkpoint: str, corpus: Path, head: Head) -> Callable[..., Any]:
    """`batchloom submit` in the test's folder, so that the job file's relative paths mean something there."""
    job = {
        "task": "summarization",
        "model": checkpoint,
        "input": {"paths": [f"{corpus.name}/*.parquet"], "keep_columns": ["id"], "rows_per_unit": 20},
        "output": {"path": "out"},
        "generation": {"num_beams": 1, "max_length": 8, "min_length": 2},
        "engine": {"device": "cpu"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))

    def submit(*options: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "batchloom", "submit", "job.yaml", "--address", head.address, *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    return submit


def test_a_submitted_job_gives_every_row_once(submit: Callable[..., Any], head: Head, tmp_path: Path) -> None:
    said = submit(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=head.token)
    assert said.returncode == 0, said.stderr
    assert "ended with exit code 0: every row is accounted for" in said.stdout
    assert "The cluster must see these paths as this machine does:\n  /" in said.stderr
    assert f"\n  {tmp_path}/out\n" in said.stderr
    assert "75 rows, all answered" in said.stderr
    verification = pipelines.verify(str(tmp_path / "out"))
    assert verification.ok, verification.problems
    assert sorted(pq.read_table(tmp_path / "out")["id"].to_pylist()) == list(range(75))


def test_a_job_that_is_refused_there_ends_here_with_its_exit_code(submit: Callable[..., Any], head: Head) -> None:
    said = submit("--set", "input.text_column=body", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=head.token)
    assert said.returncode == 2
    assert "Columns 'body' are not in the input." in said.stderr
    assert "exit code 2: the job file or the command line is wrong; nothing was computed" in said.stdout


@pytest.mark.parametrize(
    "variables", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong" * 10}]
)
def test_without_the_token_a_message_says_what_to_set(submit: Callable[..., Any], variables: dict[str, str]) -> None:
    said = submit(**variables)
    assert said.returncode == 2
    assert "wants a token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the one that its head" in said.stderr
    assert "Traceback" not in said.stderr


def test_an_address_where_nobody_answers_is_a_message(submit: Callable[..., Any]) -> None:
    (port,) = free_ports(1)
    said = submit("--address", f"http://127.0.0.1:{port}", RAY_AUTH_MODE="disabled")
    assert said.returncode == 2
    assert f"No Ray dashboard answers at http://127.0.0.1:{port}." in said.stderr
    assert "Traceback" not in said.stderr
