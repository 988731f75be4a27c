"""Marks by which folders are known to be tables. Their files, read as they lie, hold rows that were deleted."""

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from batchloom.pipelines.stores.listing import Listing

DELTA, ICEBERG, HUDI = "Delta", "Iceberg", "Hudi"
_LOGS = {"_delta_log": DELTA, ".hoodie": HUDI}
METADATA = "metadata"
THREADS = 12  # that look at the folders above an input
_MARK = re.compile(r"(.*?)/(?:(_delta_log|\.hoodie)(?:/.*)?|metadata/[^/]*\.metadata\.json(?:\.gz)?)")
_UNKNOWABLE = (FileNotFoundError, NotADirectoryError, PermissionError, NotImplementedError, ValueError)


def tables_among(paths: Iterable[str]) -> dict[str, str]:
    """Return the folders that are tables, and of which kind, by the paths that are listed in and below them.

    A Delta table may have the metadata of an Iceberg table as well, of the same files.
    """
    found: dict[str, str] = {}
    for mark in filter(None, map(_MARK.fullmatch, paths)):
        folder, log = mark.groups()
        if log is None:
            found.setdefault(folder, ICEBERG)
        else:
            found[folder] = _LOGS[log]
    return found


def table_around(folder: str, filesystem: Any) -> tuple[str, str] | None:
    """Return the innermost table that a folder is or lies in, and its kind.

    Raises: what the filesystem raises, but where a folder above may not be looked at.
    """
    places = [(one, mark) for one in _upwards(folder) for mark in (*_LOGS, METADATA)]
    with ThreadPoolExecutor(THREADS) as pool:
        infos = pool.map(lambda place: _info(filesystem, "/".join(place)), places)
        there = [place for place, info in zip(places, infos, strict=True) if info is not None]
    for one, mark in there:
        if mark in _LOGS:
            return one, _LOGS[mark]
        if tables_among(_listed(filesystem, f"{one}/{mark}")):
            return one, ICEBERG
    return None


def unlisted(filesystem: Any, seen: Listing) -> list[str]:
    """Return what lies in those folders of Iceberg's metadata that a listing ended at."""
    ends = [path for path, info in seen.items() if path.endswith(f"/{METADATA}") and info["type"] == "directory"]
    return [path for folder in ends for path in _listed(filesystem, folder)]


def _upwards(folder: str) -> Iterator[str]:
    folder = folder.rstrip("/")
    while folder:
        yield folder
        folder = folder.rpartition("/")[0].rstrip("/")


def _info(filesystem: Any, path: str) -> Any:
    try:
        return filesystem.info(path)
    except _UNKNOWABLE:
        return None


def _listed(filesystem: Any, folder: str) -> list[str]:
    try:
        return [info["name"] for info in filesystem.ls(folder, detail=True)]
    except _UNKNOWABLE:
        return []
