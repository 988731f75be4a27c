"""Whether an output and its input lie in each other, or an output in a table, by their paths and through links."""

import os
import re
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from batchloom.models.patience import Patience
from batchloom.pipelines.config import JobConfig, OutputConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.formats.table import format_of
from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.stores.connection import Connection, open_filesystem
from batchloom.pipelines.stores.listing import is_glob
from batchloom.pipelines.tables.marks import table_around


def check_apart(config: JobConfig, shards: Sequence[Shard]) -> None:
    """Raise ConfigError where the next run of the job would find its own parts as input, through whatever links."""
    filesystem, path = open_filesystem(config.output.path, config.output.storage_options)
    outputs = {f"{path.rstrip('/')}/", f"{_real(filesystem, path)}/"}
    sources = [shard.source.path for shard in shards]
    folders = {folder: f"{_real(filesystem, folder)}/" for folder in {path.rpartition("/")[0] for path in sources}}
    below = [path for path in sources if _is_below(path, outputs)]
    below += [path for path in sources if _is_below(folders[path.rpartition("/")[0]], outputs)]
    for pattern in config.input.paths:
        source = Connection(pattern, config.input.storage_options, Patience(config.limits.storage_patience))
        path = source.path
        is_pattern = is_glob(path) and not source.call(f"Looking for {pattern}", "look", partial(_exists, path))
        names = {path, str(_real(source.filesystem, path))}
        if is_pattern:
            whole = PurePosixPath(path)
            fixed = PurePosixPath(*takewhile(lambda part: not is_glob(part), whole.parts))
            names = {path, str(_real(source.filesystem, str(fixed)) / whole.relative_to(fixed))}
        if any(_finds_parts(name, output, config.output, is_pattern) for name in names for output in outputs):
            below.append(path)
    if below:
        raise ConfigError(
            f"output.path: {config.output.path} and the input ({below[0]}) lie in each other, so "
            "parts would be read as input. Choose an output folder beside the input."
        )


def check_in_no_table(config: OutputConfig, patience: Patience) -> None:
    """Raise ConfigError where the output is, or lies in, the folder of a table: its engine removes files that its log
    does not name. Raises: StoreError."""
    output = Connection(config.path, config.storage_options, patience)
    for folder in dict.fromkeys([output.path, str(_real(output.filesystem, output.path))]):
        around = output.call(f"Looking at {config.path}", "list", partial(table_around, folder, {}))
        if around is not None:
            raise ConfigError(
                f"output.path: {config.path} lies in the {around[1]} table {around[0]}, from which files that are not "
                "the table's are removed (VACUUM, orphan files). Choose a folder beside it."
            )


def _real(filesystem: Any, path: str) -> PurePosixPath:
    """Return a path without symbolic links, where the filesystem has them."""
    return PurePosixPath(os.path.realpath(path) if isinstance(filesystem, LocalFileSystem) else path)


def _is_below(path: str, folders: Iterable[str]) -> bool:
    return any(path.startswith(folder) for folder in folders)


def _finds_parts(name: str, output: str, how: OutputConfig, is_pattern: bool) -> bool:
    """Return whether an input path, or a pattern, finds parts in an output folder. `how`: they are written."""
    if not is_pattern:
        return output.startswith(name.rstrip("/") + "/")
    part = PurePosixPath(output, *(f"{key}=value" for key in how.partition_by), f"part{how.ending}")
    found = [one for one in (part, *part.parents) if re.fullmatch(glob_translate(name), str(one))]
    return any(format_of(str(one)) for one in found)  # the part, or a folder, read whole


def _exists(path: str, filesystem: Any) -> bool:
    return bool(filesystem.exists(path))
