"""What the raylet of tests runs to start a worker: this has it forked, and lives as long as it.

Where the worker's job has no server, or it is to have an environment of its own, it is started as those of a job's Ray.
"""

import json
import os
import socket
import sys

FOLDER = "BATCHLOOM_FORK_SERVERS"  # of sockets, named by jobs
SCRIPT = "BATCHLOOM_WORKER_SCRIPT"  # of a job's Ray
LANGUAGE = "--language=PYTHON"
ENVIRONMENT = "--serialized-runtime-env-context"


def main() -> None:
    arguments = sys.argv[1:]
    if LANGUAGE not in arguments or any(one.startswith(ENVIRONMENT) for one in arguments):
        become_worker(arguments)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:  # a request comes whole
        try:
            connection.connect(os.path.join(os.environ[FOLDER], os.environ["RAY_JOB_ID"]))
        except OSError:
            become_worker(arguments)
        arguments.remove(LANGUAGE)
        request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        socket.send_fds(connection, [json.dumps(request).encode()], [1, 2])
        connection.recv(1)  # until the worker's end


def become_worker(arguments: list[str]) -> None:
    os.execv(sys.executable, [sys.executable, os.environ[SCRIPT], *arguments])


if __name__ == "__main__":
    main()
