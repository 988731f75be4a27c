"""Write a report to a file."""

import os

from batchloom.pipelines.errors import ConfigError


def write(option: str, path: str, content: str) -> None:
    """Write a file, which only its owner may read where it is new: it holds texts of the output.

    Raises:
        ConfigError: `path` cannot be written; `option` gave it.
    """
    try:
        with open(path, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(content)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{option} {path}: cannot be written: {reason}. Name a file in a folder that is there and takes files."
        ) from error
