"""A Ray head for many jobs: a job that starts its own waits ten seconds for it. It knows no faults."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.faults.processes import MARK, end_all, wait_until, with_mark
from tests.processes import free_ports

PORTS = (
    "port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)
NUM_CPUS = 4  # of the head: jobs that were killed hold theirs for some seconds more


@contextmanager
def running(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield the environment in which a job uses this head, and a mark that all its processes bear."""
    folder = tempfile.mkdtemp(prefix="loom-")  # short: Ray puts sockets below it
    token, mark = secrets.token_hex(24), secrets.token_hex(8)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    inside = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats",
        "--include-dashboard=false", f"--temp-dir={folder}", f"--num-cpus={NUM_CPUS}",
        "--object-store-memory=300000000", "--node-ip-address=127.0.0.1",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    log = Path(folder, "head.log")
    with log.open("w") as file:
        started = subprocess.Popen(
            command, env=os.environ | inside | {MARK: mark}, stdout=file, stderr=file, start_new_session=True
        )
    try:
        wait_until(lambda: "Ray runtime started" in log.read_text() or started.poll() is not None, 120, "the Ray head")
        assert started.poll() is None, log.read_text()
        yield {**inside, "RAY_ADDRESS": f"127.0.0.1:{ports['port']}", MARK: mark}
    finally:
        end_all(mark)
        started.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
    assert with_mark(mark) == []
