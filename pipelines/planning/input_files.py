"""Find the files of an input by listing its stores. It opens none of them."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from batchloom.models.patience import Patience
from batchloom.models.trouble import Trouble
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError, NoInputError, StoreError
from batchloom.pipelines.stores.connection import Connection, open_filesystem
from batchloom.pipelines.stores.listing import Listing, find, glob, glob_folder, is_glob
from batchloom.pipelines.stores.storage import version_of


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file as a listing shows it."""

    path: str
    """The path on its filesystem."""
    folder: str
    """The folder that its pattern starts from."""
    size: int | None
    """Bytes; None from filesystems that do not list it."""
    version: str
    """The etag or modification time, as the filesystem gives it; empty where it gives none."""


def find_files(config: InputConfig, patience: Patience) -> list[InputFile]:
    """Return the files that the paths of an input match, in a fixed order, each once.

    Raises: InputError where paths match nothing or cannot be listed, or lie in several stores; StoreError where the
    store had trouble for longer than `patience` allows.
    """
    _refuse_several_filesystems(config)
    files = list(_find_files(config, patience))
    filesystem, _ = open_filesystem(config.paths[0], config.storage_options)
    filesystem.invalidate_cache()  # it remembers what it listed: 2 kB a file
    return files


def _find_files(config: InputConfig, patience: Patience) -> Iterator[InputFile]:
    seen: set[str] = set()
    unmatched: list[str] = []
    for pattern in config.paths:
        folder, files = _matching(config, pattern, patience)
        if not files:
            unmatched.append(pattern)
        for file in sorted(files):
            if file not in seen:
                seen.add(file)
                yield InputFile(file, folder, files[file]["size"], version_of(files[file]))
    if unmatched:
        raise NoInputError(
            "\n".join(f"Input path {pattern!r} matches no file." for pattern in unmatched)
            + " Check the spelling and the pattern; a folder is searched for files that end in .parquet."
        )


def _refuse_several_filesystems(config: InputConfig) -> None:
    opened = {path: open_filesystem(path, config.storage_options)[0] for path in config.paths}
    first, *others = opened
    for path in others:
        if opened[path] != opened[first]:
            raise InputError(
                f"input.paths: {first!r} and {path!r} lie in different stores, and a job reads from one. "
                "Run a job for each, with an output of its own."
            )


def _matching(config: InputConfig, pattern: str, patience: Patience) -> tuple[str, Listing]:
    """Return (folder that the pattern starts from, infos of the matching files by path)."""
    connection = Connection(pattern, config.storage_options, patience)
    try:
        doing = f"Listing input path {pattern!r}"
        return connection.call(doing, "list", lambda filesystem: _found(filesystem, connection.path.rstrip("/")))
    except StoreError as error:
        if error.trouble is Trouble.PASSING:
            raise
        raise InputError(str(error)) from error


def _found(filesystem: Any, path: str) -> tuple[str, Listing]:
    filesystem.invalidate_cache()
    try:
        if is_glob(path) and not filesystem.exists(path):  # a folder may be called "2024[1]"
            folder = glob_folder(path)
            found = _followed(filesystem, glob(filesystem, path))
            folders = [p for p, info in found.items() if info["type"] == "directory" and p.endswith(".parquet")]
            for dataset in folders:  # Spark writes folders that end in .parquet
                found |= _below(filesystem, dataset)
        elif filesystem.isdir(path) or (info := filesystem.info(path))["type"] == "directory":
            folder, found = path, _below(filesystem, path)
        else:
            folder, found = posixpath.dirname(path), {path: info}
    except FileNotFoundError:
        return "", {}
    return folder, {p: info for p, info in found.items() if info["type"] == "file"}


def _below(filesystem: Any, folder: str) -> Listing:
    """Return the Parquet files of a folder, recursively, without hidden ones."""
    found = find(filesystem, folder)
    return _followed(
        filesystem, {p: i for p, i in found.items() if p.endswith(".parquet") and not _is_hidden(p, folder)}
    )


def _followed(filesystem: Any, found: Listing) -> Listing:
    """Replace symbolic links by their targets' infos: a listing describes the link, and a hub's cache is all links.

    A broken link counts as a file, so that it is reported with those that cannot be read.
    """

    def behind(path: str) -> dict[str, Any]:
        info: dict[str, Any] = filesystem.info(path) if filesystem.exists(path) else {"type": "file", "size": 0}
        return info

    return {path: behind(path) if info["type"] == "other" else info for path, info in found.items()}


def _is_hidden(path: str, root: str) -> bool:
    return any(part.startswith(("_", ".")) for part in path.removeprefix(root).split("/"))
