"""A worker of a Ray of our own starts at once, and one with an environment of its own as Ray's own script starts it."""

import subprocess
import sys
from pathlib import Path

from ray._private.workers import setup_worker

from batchloom.pipelines import ray_worker

OPTIONS = ["-s", "default_worker.py", "--node-id=1"]


def test_a_worker_is_what_ray_makes_of_the_arguments() -> None:
    assert ray_worker.command([*OPTIONS, "--language=PYTHON"]) == [sys.executable, *OPTIONS]


def test_rays_script_starts_all_others() -> None:
    script = [sys.executable, setup_worker.__file__]
    for others in ([*OPTIONS, "--language=JAVA"], [*OPTIONS, "--language=PYTHON", f"{ray_worker.ENVIRONMENT}={{}}"]):
        assert ray_worker.command(others) == [*script, *others]


def test_the_script_becomes_the_worker(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("import sys; print(sys.argv[1:], 'ray' in sys.modules)")
    command = [sys.executable, ray_worker.__file__, str(tmp_path / "worker.py"), "--node-id=1", "--language=PYTHON"]
    assert subprocess.check_output(command, text=True, timeout=60) == "['--node-id=1'] False\n"
