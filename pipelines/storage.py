"""A store is a folder on any fsspec filesystem, with atomic writes. It knows no Parquet."""

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from batchloom.pipelines.errors import ConfigError

TEMPORARY = "_batchloom/tmp"
GLOB_CHARACTERS = "*?["
VERSION_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
PRIVATE = "_batchloom/"  # of these files only their owner may read: they tell how a job was run


@dataclass(frozen=True)
class Stored:
    """What a filesystem tells of a file without reading it."""

    size: int
    """Bytes."""
    version: str
    """The etag or modification time, as the filesystem gives it."""


@dataclass(frozen=True)
class Store:
    """A folder whose files are read and written by name. Picklable, so that it can be sent to workers."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return open_filesystem(self.url, self.options)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": dict(self.options)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def filesystem(self) -> Any:
        return self._opened[0]

    def path(self, name: str = "") -> str:
        root = self._opened[1].rstrip("/")
        return f"{root}/{name}" if name else root

    def names(self) -> dict[str, int]:
        """Return every file below the folder: its name relative to the folder, and its size in bytes."""
        return {name: stored.size for name, stored in self.listing().items()}

    def listing(self) -> dict[str, Stored]:
        """Return every file below the folder by its name relative to the folder."""
        self.filesystem.invalidate_cache()
        try:
            found = self.filesystem.find(self.path(), detail=True)
        except FileNotFoundError:
            return {}
        prefix = self.path() + "/"
        return {
            path.removeprefix(prefix): Stored(info["size"], version_of(info))
            for path, info in found.items()
            if path.startswith(prefix) and info["type"] == "file" and info["size"] is not None
        }

    def stat(self, name: str) -> Stored:
        """Return a file's size and version. Raises: FileNotFoundError."""
        self.filesystem.invalidate_cache()
        info = self.filesystem.info(self.path(name))
        return Stored(info["size"], version_of(info))

    def read(self, name: str) -> bytes:
        self.filesystem.invalidate_cache()
        content: bytes = self.filesystem.cat_file(self.path(name))
        return content

    def put(self, name: str, content: bytes) -> None:
        """Write a file atomically: a reader sees all of `content` or nothing, also if this process is killed.

        An object store's PUT (or finished multipart upload) is atomic. On a local disk the bytes are written under a
        temporary name, synced and renamed.
        """
        if isinstance(self.filesystem, LocalFileSystem):
            try:
                self._put_local(name, content)
            except FileNotFoundError:  # a concurrent job in this folder ended and removed the temporary folder of both
                self._put_local(name, content)
        else:
            self.filesystem.pipe_file(self.path(name), content)

    def _put_local(self, name: str, content: bytes) -> None:
        target, temporary = self.path(name), self.path(f"{TEMPORARY}/{uuid.uuid4().hex}")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.makedirs(os.path.dirname(temporary), exist_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _mode(name)), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        folder = os.open(os.path.dirname(target), os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the rename survive a power failure
        finally:
            os.close(folder)

    def remove(self, names: list[str]) -> None:
        for name in names:
            self.filesystem.rm_file(self.path(name))

    def remove_temporary(self) -> None:
        """Remove temporary files of killed writers (local disks only: object stores have none)."""
        if self.filesystem.exists(self.path(TEMPORARY)):
            self.filesystem.rm(self.path(TEMPORARY), recursive=True)


def open_filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the filesystem of `url` and the path on it.

    Raises:
        ConfigError: the protocol is unknown, or the package of its filesystem is not installed.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"Cannot open {url!r}: {error}. Use a local path or a URL whose filesystem is installed, "
            "for example pip install 'batchloom[s3]' for s3://."
        ) from error
    return filesystem, path


def version_of(info: Mapping[str, Any]) -> str:
    """Return the etag or modification time in what a filesystem tells of a file; empty where it tells none."""
    return next((str(info[key]) for key in VERSION_KEYS if info.get(key) is not None), "")


def _mode(name: str) -> int:
    return 0o600 if name.startswith(PRIVATE) else 0o666  # less the umask


def absolute(url: str) -> str:
    """Return a local path as an absolute one, since workers have other working directories; URLs are unchanged."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def is_glob(path: str) -> bool:
    return any(character in path for character in GLOB_CHARACTERS)
