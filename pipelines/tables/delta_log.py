"""The part of a Delta table's log that tells of one version, copied to this machine, where `deltalake` reads it.

So a table is read from any store that its files are read from, with the same options and the same patience.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from batchloom.pipelines.errors import InputError
from batchloom.pipelines.stores.connection import Connection
from batchloom.pipelines.stores.listing import Listing, find

LOG = "_delta_log"
SIDECARS = "_sidecars"
_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.\d{10}\.(\d{10})|\.[0-9a-f-]{36})?\.(?:parquet|json)")
_VECTOR = re.compile(r"deletion_vector_[0-9a-f-]{36}\.bin")


@dataclass(frozen=True)
class DeltaLog:
    """What a listing of a log shows."""

    table: str
    """The table's folder on its filesystem."""
    commits: Mapping[int, str]
    """Paths by version."""
    checkpoints: Mapping[int, list[str]]
    """Whole ones: the paths of the files that are one, by version."""
    sidecars: tuple[str, ...]
    """Files that checkpoints refer to."""

    @staticmethod
    def find(connection: Connection, table: str) -> "DeltaLog":
        """Raises: StoreError; InputError where the log tells of no version."""
        folder = f"{table}/{LOG}"
        paths = connection.call(f"Listing {folder}", "list", lambda one: _fresh(one, folder))
        names = {path: path.removeprefix(f"{folder}/") for path in paths}
        commits = {int(match[1]): path for path, name in names.items() if (match := _COMMIT.fullmatch(name))}
        found: dict[int, list[str]] = {}
        for path, match in [(path, _CHECKPOINT.fullmatch(name)) for path, name in sorted(names.items())]:
            if match and match[2] is None:
                found[int(match[1])] = [path]
            elif match:
                found.setdefault(int(match[1]), []).append(path)
        whole = {version: files for version, files in found.items() if _is_whole(files)}
        if not commits and not whole:
            raise InputError(f"{folder} has no commit and no checkpoint, so what the table holds is not known.")
        sidecars = tuple(path for path in paths if f"/{SIDECARS}/" in path)
        return DeltaLog(table, commits, whole, sidecars)

    @property
    def newest(self) -> int:
        return max([*self.commits, *self.checkpoints])

    def copy(self, connection: Connection, version: int, target: Path) -> None:
        """Write the files that tell of a version below `target`.

        Raises: StoreError; InputError where the log does not reach back to the version, or not up to it.
        """
        files = self._files_of(version)
        if files is None:
            known = [one for one in range(self._oldest, self.newest + 1) if self._files_of(one) is not None]
            raise InputError(
                f"input.version: {version} of the Delta table {self.table} is not in its log. It has the versions "
                f"{_ranges(known)}. Old ones go when a table's log is cleaned up."
            )
        fetch(connection, self.table, files, target)

    @property
    def _oldest(self) -> int:
        return min([*self.commits, *self.checkpoints])

    def _files_of(self, version: int) -> list[str] | None:
        start = max((one for one in self.checkpoints if one <= version), default=-1)
        later = range(start + 1, version + 1)
        if version < 0 or not all(one in self.commits for one in later):
            return None
        checkpoint = [*self.checkpoints[start], *self.sidecars] if start >= 0 else []
        own = [self.commits[start]] if start in self.commits else []
        return [*checkpoint, *own, *(self.commits[one] for one in later)]


def fetch_vectors(connection: Connection, table: str, listed: Iterable[str], target: Path) -> None:
    """Write a table's files of deletion vectors below `target`. Raises: StoreError."""
    fetch(connection, table, [path for path in listed if _VECTOR.fullmatch(posixpath.basename(path))], target)


def fetch(connection: Connection, root: str, paths: list[str], target: Path) -> None:
    """Write files of a folder at the same places below `target`. Raises: StoreError."""
    if not paths:
        return
    contents = connection.call(f"Reading {paths[-1]}", "read", lambda one: one.cat(paths))
    for path, content in contents.items():
        file = target / posixpath.relpath(path, root)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _fresh(filesystem: object, folder: str) -> Listing:
    filesystem.invalidate_cache()  # type: ignore[attr-defined]
    return find(filesystem, folder)


def _is_whole(files: list[str]) -> bool:
    match = _CHECKPOINT.fullmatch(posixpath.basename(files[0]))
    return match is not None and len(files) == int(match[2] or 1)


def _ranges(versions: list[int]) -> str:
    """Return ascending versions in words: `0, 3 to 7`."""
    ends: list[list[int]] = []
    for version in versions:
        if ends and version == ends[-1][1] + 1:
            ends[-1][1] = version
        else:
            ends.append([version, version])
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in ends) or "none"
