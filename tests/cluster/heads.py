"""Ray heads with a token, as Ray 2.60 may demand, whose processes are found whatever becomes of them."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import free_ports, with_setting

MARK = "BATCHLOOM_TEST_HEAD"  # in the environment of the head, so in that of every process it starts


@dataclass(frozen=True)
class Head:
    """A Ray cluster of one node."""

    address: str
    """Of the dashboard."""
    gcs: str
    """What RAY_ADDRESS names."""
    token: str
    metrics_port: int
    """Where Prometheus scrapes its node."""


def processes_of(mark: str) -> list[int]:
    """Every process that inherited the mark, whoever its parent is by now."""
    return list(with_setting(f"{MARK}={mark}"))


@contextmanager
def started(python: Path, folder: Path, variables: Mapping[str, str]) -> Iterator[Head]:
    """Start a head of a Python's packages in a folder."""
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc to be sure that no process of the head is left")
    token, mark = secrets.token_hex(24), secrets.token_hex(8)
    temporary = tempfile.mkdtemp(prefix="loom-")  # short: Ray puts sockets below it
    names = ["port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port",
             "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port"]  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    environment = os.environ | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, MARK: mark, "PATH": f"{python.parent}:{os.environ['PATH']}",
    } | variables  # fmt: skip
    command = [str(python), "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
               "--temp-dir", temporary, "--num-cpus", "2", "--object-store-memory", "100000000",
               "--dashboard-host", "127.0.0.1", "--node-ip-address", "127.0.0.1"]  # fmt: skip
    command += [f"--{name}={port}" for name, port in ports.items()]
    log = Path(temporary, "head.log")
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, cwd=folder, start_new_session=True
        )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        wait_for_dashboard(address, token, process, log)
        yield Head(address, f"127.0.0.1:{ports['port']}", token, ports["metrics-export-port"])
    finally:
        end(mark)
        process.wait(30)
        shutil.rmtree(temporary, ignore_errors=True)
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
