"""Which Ray is installed. An older one, as a cluster may have to which code is shipped, fails in words of its own."""

import re
from importlib.metadata import version

from batchloom.pipelines.errors import ConfigError

OLDEST = (2, 60)


def check_ray() -> None:
    """Raises: ConfigError where Ray is too old. It imports nothing of it."""
    found = version("ray")
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise ConfigError(
            f"Ray {found} is what this environment, or this cluster, has, and batchloom needs {needed} or newer. "
            f"Install it on all nodes (pip install 'ray[data,default]>={needed}'), or start them from a newer image."
        )
