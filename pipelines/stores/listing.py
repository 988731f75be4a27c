"""Listings that raise what goes wrong: fsspec's walks leave out, without a word, a folder that cannot be listed."""

import re
from collections.abc import Iterator
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.utils import glob_translate

Listing = dict[str, dict[str, Any]]  # the filesystem's infos by path

GLOB_CHARACTERS = "*?["


def find(filesystem: Any, folder: str) -> Listing:
    """Return every file below a folder. Raises: what the filesystem raises for any folder in it."""
    if _has_own_find(filesystem):  # an object store's: it lists keys, not folders
        found: Listing = filesystem.find(folder, detail=True)
        return found
    return {path: info for path, info in _walk(filesystem, folder, None) if info["type"] != "directory"}


def glob(filesystem: Any, pattern: str) -> Listing:
    """Return the files and folders that match, as `filesystem.glob`. Raises: as `find`."""
    return matching(passed(filesystem, pattern), pattern)


def passed(filesystem: Any, pattern: str) -> Listing:
    """Return the files and folders that are looked at to find those that match. Raises: as `find`."""
    folder = glob_folder(pattern)
    depth = None if "**" in pattern else pattern[len(folder) :].strip("/").count("/") + 1
    if depth is None and _has_own_find(filesystem):
        listing: Listing = filesystem.find(folder, detail=True, withdirs=True)
        return listing
    return dict(_walk(filesystem, folder, depth))


def matching(found: Listing, pattern: str) -> Listing:
    """Return those of the files and folders that match."""
    matches = re.compile(glob_translate(pattern)).match
    return {path: info for path, info in found.items() if matches(path)}


def glob_folder(pattern: str) -> str:
    """Return the folder above the first character that makes a path a pattern."""
    first = min(pattern.index(character) for character in GLOB_CHARACTERS if character in pattern)
    return pattern[:first].rpartition("/")[0]


def is_glob(path: str) -> bool:
    return any(character in path for character in GLOB_CHARACTERS)


def _walk(filesystem: Any, folder: str, depth: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what lies in a folder, and in those of its folders that are less than `depth` deep, with their paths."""
    for info in filesystem.ls(folder, detail=True):
        path = info["name"].rstrip("/")
        if path == folder.rstrip("/"):
            continue  # the folder's own mark, on object stores
        yield path, info
        if info["type"] == "directory" and depth != 1:
            try:
                yield from _walk(filesystem, path, None if depth is None else depth - 1)
            except FileNotFoundError as error:  # removed meanwhile, or a store in trouble: another listing will tell
                raise ConnectionError(f"{path} is listed and not found") from error


def _has_own_find(filesystem: Any) -> bool:
    """Whether `find` is not fsspec's, which is made of walks that omit what fails."""
    if isinstance(filesystem, AsyncFileSystem):
        return type(filesystem)._find is not AsyncFileSystem._find
    return type(filesystem).find is not AbstractFileSystem.find
