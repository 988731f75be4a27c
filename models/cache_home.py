"""The folder of a machine in which files are kept that are fetched or made once: models, compiled kernels."""

import os
from pathlib import Path


class NoHomeError(OSError):
    """This user has no home directory, and nothing names a folder in place of one."""

    def __init__(self) -> None:
        super().__init__("this user has no home directory: set BATCHLOOM_CACHE to a folder that it may write to")


def cache_home() -> Path:
    """Return BATCHLOOM_CACHE, or a folder of the user's home. It may not be there yet. Raises: NoHomeError."""
    if named := os.environ.get("BATCHLOOM_CACHE"):
        return Path(named)
    home = os.path.expanduser("~")  # as it is where a user, as a number in a container, has none
    if not os.path.isabs(home):
        raise NoHomeError
    return Path(home) / ".cache" / "batchloom"
