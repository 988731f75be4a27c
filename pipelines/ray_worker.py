"""What the raylet of a Ray of this process's own runs to start a worker: `python ray_worker.py WORKER OPTIONS`.

Ray's script for that imports Ray, to see whether the worker is to have an environment of its own, and then runs another
Python, which imports Ray: a third of a second of a core for each worker. This one imports nothing.
"""

import os
import sys
from collections.abc import Sequence

ENVIRONMENT = "--serialized-runtime-env-context"
LANGUAGE = "--language="


def command(arguments: Sequence[str]) -> list[str]:
    """Return what the process becomes, of the arguments of Ray's script: the worker, or Ray's script where it has an
    environment of its own or is not Python's."""
    if any(one.startswith(ENVIRONMENT) for one in arguments) or f"{LANGUAGE}PYTHON" not in arguments:
        from ray._private.workers import setup_worker

        return [sys.executable, setup_worker.__file__, *arguments]
    return [sys.executable, *(one for one in arguments if not one.startswith(LANGUAGE))]


if __name__ == "__main__":
    os.execv(sys.executable, command(sys.argv[1:]))
