"""A process that has imported what Ray's workers import, and forks one whenever it is asked: `python server.py FILE`.

Importing Ray, Ray Data and torch takes a replica three seconds of a core, and the tests start hundreds. FILE is the
number of a socket that listens. The server ends with its standard input, which is whoever started it. It computes
nothing: children lack the threads of torch and Arrow.

RAY_RAYLET_PID and RAY_JOB_ID must be those of the workers: Ray reads them once, as it is imported.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray.actor

MODULES = (
    "ray.data",
    "ray.data._internal.execution.operators.actor_pool_map_operator",
    "ray.data._internal.issue_detection",
    "ray.dag.compiled_dag_node",
    "pydantic.v1",
    "torch",
    "batchloom.models.generation.engine",
    "batchloom.models.single_pass.single_pass",
    "batchloom.models.checkpoints.loading",
    "batchloom.pipelines.running.stream",
)
MAX_REQUEST = 1 << 20  # bytes
NUM_FILES = 2  # standard output and error


def import_all() -> None:
    """Import what workers import.

    Ray gives each actor's class a random name as it is imported. The first such number of a process seeds a generator,
    and children would go on alike: two workers would call different things by the same name.
    """
    kind = ray.actor.ActorClassID
    ray.actor.ActorClassID = SimpleNamespace(from_random=lambda: kind(os.urandom(kind.size())))
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray tells its workers before they import
    for name in MODULES:
        importlib.import_module(name)
    ray.actor.ActorClassID = kind


def serve(listening: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork a child for each request. Return, in a child, the request and its files; None in the server, at its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children leave nothing to wait for
    ready = selectors.DefaultSelector()
    ready.register(listening, selectors.EVENT_READ)
    ready.register(sys.stdin, selectors.EVENT_READ)
    while True:
        if any(key.fileobj is sys.stdin for key, _ in ready.select()):
            return None
        connection, _ = listening.accept()
        content, files, *_ = socket.recv_fds(connection, MAX_REQUEST, NUM_FILES)
        if not os.fork():
            os.setpgrp()  # the raylet ends a worker with its group
            ready.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection.detach()  # open as long as the child lives
            return json.loads(content), files
        connection.close()
        for file in files:
            os.close(file)


def become(request: dict[str, Any], files: list[int]) -> None:
    """Run the script of a request as Python would in a process of its own."""
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        import_all()
        gc.freeze()  # no collection of a child looks at these objects, and its end does not take them apart
        asked = serve(listening)
    if asked is not None:
        become(*asked)


if __name__ == "__main__":
    main()
