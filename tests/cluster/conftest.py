"""A Ray head of its own with a token, as Ray 2.60 may demand, and the wheel as users have it."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import free_ports, with_setting

ROOT = Path(__file__).resolve().parents[2]
MARK = "BATCHLOOM_TEST_HEAD"  # in the environment of the head, so in that of every process it starts


@dataclass(frozen=True)
class Head:
    """A Ray cluster of one node."""

    address: str
    """Of the dashboard."""
    gcs: str
    """What RAY_ADDRESS names."""
    token: str


def processes_of(mark: str) -> list[int]:
    """Every process that inherited the mark, whoever its parent is by now."""
    return list(with_setting(f"{MARK}={mark}"))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that a user installs, built from this source."""
    folder = tmp_path_factory.mktemp("dist")
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # setuptools would pack what an earlier build left
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=240)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with the wheel in it; what it depends on is where it is for all tests."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, timeout=240)
    return folder


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's project that has modules and folders of the names that our own folders have."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "models.py").write_text("raise ImportError('the project models.py was imported')\n")
    (folder / "pipelines").mkdir()
    (folder / "pipelines" / "__init__.py").write_text("raise ImportError('the project pipelines was imported')\n")
    (folder / "jobs").mkdir()  # a plain folder, of job files say: Python takes it for a namespace package
    (folder / "jobs" / "cli.py").write_text("raise ImportError('the project jobs was imported')\n")
    return folder


@pytest.fixture(scope="session")
def head(site: Path, hostile: Path) -> Iterator[Head]:
    """A head with the installed wheel, started in the hostile project, so that its workers begin there."""
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc to be sure that no process of the head is left")
    token, mark = secrets.token_hex(24), secrets.token_hex(8)
    folder = tempfile.mkdtemp(prefix="loom-")  # short: Ray puts sockets below it
    names = ["port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port",
             "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port"]  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    environment = os.environ | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, MARK: mark, "PYTHONPATH": str(site),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats",
               "--temp-dir", folder, "--num-cpus", "2", "--object-store-memory", "100000000",
               "--dashboard-host", "127.0.0.1", "--node-ip-address", "127.0.0.1"]  # fmt: skip
    command += [f"--{name}={port}" for name, port in ports.items()]
    log = Path(folder, "head.log")
    with log.open("w") as file:
        started = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, cwd=hostile, start_new_session=True
        )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        wait_for_dashboard(address, token, started, log)
        yield Head(address, f"127.0.0.1:{ports['port']}", token)
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
def free_port() -> int:
    """A port of this machine where nobody answers."""
    return free_ports(1)[0]
