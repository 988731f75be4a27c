"""A Ray head of its own, and the wheel as users have it."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.heads import Head, started
from tests.processes import free_ports

ROOT = Path(__file__).resolve().parents[2]
METRICS_AT_ONCE = {"RAY_metrics_report_interval_ms": "1000"}  # of each process, 10,000 by default


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
    with started(Path(sys.executable), hostile, {"PYTHONPATH": str(site), **METRICS_AT_ONCE}) as head:
        yield head


@pytest.fixture
def free_port() -> int:
    """A port of this machine where nobody answers."""
    return free_ports(1)[0]
