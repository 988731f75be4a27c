"""A Ray of the tests' process, for all of its jobs: a start takes seconds."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.fork_server.start_worker import FOLDER, SCRIPT

FORK_SERVER = Path(__file__).parent / "fork_server"


@contextmanager
def local_ray() -> Iterator[None]:
    """Start a Ray like one that a job starts for itself. Jobs in the context take it as it is.

    Its workers are forked from a process that has imported what they import.
    """
    import ray
    from ray._private import parameter

    from batchloom.pipelines.own_ray import SETTINGS, WORKER_SCRIPT

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fork-"))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (SETTINGS | {FOLDER: folder, SCRIPT: WORKER_SCRIPT}).items():
                patch.setenv(name, value)
            script = str(FORK_SERVER / "start_worker.py")
            patch.setattr(parameter, "RayParams", partial(parameter.RayParams, setup_worker_path=script))
            ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        stack.callback(ray.shutdown)
        stack.enter_context(_fork_server(Path(folder)))
        yield


@contextmanager
def _fork_server(folder: Path) -> Iterator[None]:
    """Run the fork server of this process's job, which is all jobs of ours that it runs."""
    import ray
    from ray._private import worker

    job = ray.get_runtime_context().get_job_id()
    raylet = worker._global_node.all_processes["raylet"][0].process.pid
    path = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"PYTHONPATH": path, "RAY_RAYLET_PID": str(raylet), "RAY_JOB_ID": job}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(folder / job))
        listening.listen(64)
        command = [sys.executable, str(FORK_SERVER / "server.py"), str(listening.fileno())]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, env=environment, pass_fds=[listening.fileno()], start_new_session=True
        )
    with process:
        try:
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
