"""A store is a folder on any fsspec filesystem, with atomic writes. It knows no Parquet."""

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from batchloom.models.patience import Patience
from batchloom.pipelines.errors import StoreError
from batchloom.pipelines.stores.connection import Connection
from batchloom.pipelines.stores.listing import Listing, find
from batchloom.pipelines.stores.patient_file import PatientFile

log = logging.getLogger(__name__)

TEMPORARY = "_batchloom/tmp"
UNKNOWN_BYTES = 1 << 30  # of a file that was not listed: what its reading is given time for
VERSION_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
PRIVATE = "_batchloom/"  # of these files only their owner may read: they tell how a job was run
PUBLIC = "_batchloom/columns.pq"  # but not this one, which readers of the parts may need


@dataclass(frozen=True)
class Stored:
    """What a filesystem tells of a file without reading it."""

    size: int
    """Bytes."""
    version: str
    """The etag or modification time, as the filesystem gives it."""


@dataclass(frozen=True)
class Store:
    """A folder whose files are read and written by name. Picklable, so that it can be sent to workers.

    All calls are tried again with patience, and raise StoreError where that does not help. What has succeeded once
    (listing, reading, writing, removing) is known to be permitted, also in workers.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    patience: Patience = field(default_factory=Patience)
    known: set[str] = field(default_factory=set, repr=False, compare=False)
    """Kinds of calls that have succeeded."""

    @cached_property
    def _connection(self) -> Connection:
        return Connection(self.url, self.options, self.patience, self.known)

    @cached_property
    def _listed(self) -> dict[str, int]:
        """What the last listing showed, and what was written and removed since: bytes by name."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": dict(self.options), "patience": self.patience, "known": self.known}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def filesystem(self) -> Any:
        return self._connection.filesystem

    @property
    def is_local(self) -> bool:
        """It is on a disk of this machine."""
        return self._connection.is_local

    def path(self, name: str = "") -> str:
        root = self._connection.path.rstrip("/")
        return f"{root}/{name}" if name else root

    def names(self) -> dict[str, int]:
        """Return every file below the folder: its name relative to the folder, and its size in bytes.

        Raises: StoreError.
        """
        return {name: stored.size for name, stored in self.listing().items()}

    def listing(self) -> dict[str, Stored]:
        """Return every file below the folder by its name relative to the folder. Raises: StoreError.

        Empty objects whose key ends in a slash are no files: consoles of object stores and Hadoop mark folders by them.
        """

        def below(filesystem: Any) -> Listing:
            filesystem.invalidate_cache()
            try:
                return find(filesystem, self.path())
            except FileNotFoundError:
                if self._listed and not self._connection.is_local:
                    raise  # it was there: this may be an outage
                return {}

        found = self._connection.call(f"Listing {self.url}", "list", below)
        prefix = self.path() + "/"
        listed = {
            path.removeprefix(prefix): Stored(info["size"], version_of(info))
            for path, info in found.items()
            if path.startswith(prefix)
            and info["type"] == "file"
            and info["size"] is not None
            and (info["size"] or not path.endswith("/"))
        }
        self.__dict__["_listed"] = {name: stored.size for name, stored in listed.items()}
        return listed

    def stat(self, name: str) -> Stored:
        """Return a file's size and version. Raises: StoreError."""

        # of a kind with writing: what may be written may be looked for
        return self._connection.call(f"Looking for {self.url}/{name}", "write", partial(self._look, name=name), 0)

    def open(self, name: str) -> PatientFile:
        """Return a file that is read bit by bit. Raises: StoreError, as its reads do."""
        return PatientFile(self._connection, self.path(name))

    def read(self, name: str) -> bytes:
        """Return a file's contents. Raises: FileNotFoundError where no listing has shown it either; StoreError."""

        def cat(filesystem: Any) -> bytes | None:
            filesystem.invalidate_cache()
            try:
                content: bytes = filesystem.cat_file(self.path(name))
            except FileNotFoundError:
                if name in self._listed:
                    raise
                return None
            return content

        num_bytes = self._listed.get(name, UNKNOWN_BYTES)
        content = self._connection.call(f"Reading {self.url}/{name}", "read", cat, num_bytes)
        if content is None:
            raise FileNotFoundError(self.path(name))
        return content

    def put(self, name: str, content: bytes) -> Stored:
        """Write a file, look at it, and return what was seen. A reader sees all of `content` or nothing, also if this
        process is killed.

        An object store's PUT (or finished multipart upload) is atomic. On a local disk the bytes are written under a
        temporary name, synced and renamed. A PUT that was given up and arrives late puts the same bytes; one that was
        acknowledged and not done is repeated.

        Raises: StoreError.
        """

        def pipe(filesystem: Any) -> Stored:
            if isinstance(filesystem, LocalFileSystem):
                try:
                    self._put_local(name, content)
                except FileNotFoundError:  # a concurrent job here removed the temporary folder of both, or an empty one
                    self._put_local(name, content)
            else:
                filesystem.pipe_file(self.path(name), content)
            stored = self._look(filesystem, name)
            if stored.size != len(content):
                raise ConnectionError(f"{stored.size} of {len(content)} bytes are there")
            return stored

        stored = self._connection.call(f"Writing {self.url}/{name}", "write", pipe, len(content))
        self._listed[name] = len(content)
        return stored

    def _look(self, filesystem: Any, name: str) -> Stored:
        filesystem.invalidate_cache()
        info = filesystem.info(self.path(name))
        return Stored(info["size"], version_of(info))

    def _put_local(self, name: str, content: bytes) -> None:
        target, temporary = self.path(name), self.path(f"{TEMPORARY}/{uuid.uuid4().hex}")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.makedirs(os.path.dirname(temporary), exist_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _mode(name)), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(temporary, target)
        except IsADirectoryError as error:
            raise IsADirectoryError(
                error.errno, "A folder is where a file is to be written: remove it", target
            ) from None
        folder = os.open(os.path.dirname(target), os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the rename survive a power failure
        finally:
            os.close(folder)

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, and folders that they leave empty; a file that is not there, and not listed, is removed.

        Raises: StoreError.
        """

        def rm(filesystem: Any, name: str) -> None:
            self._listed.pop(name, None)
            try:
                filesystem.rm_file(self.path(name))
            except FileNotFoundError:
                if name in self.names():  # otherwise an attempt whose answer was lost has removed it
                    raise
            if isinstance(filesystem, LocalFileSystem):
                self._remove_empty_folders(name)

        for name in names:
            self._connection.call(f"Removing {self.url}/{name}", "remove", partial(rm, name=name))

    def _remove_empty_folders(self, name: str) -> None:
        """Remove the folders that a file was in, and that hold nothing now. Object stores have none."""
        while "/" in name:
            name = name.rpartition("/")[0]
            try:
                os.rmdir(self.path(name))
            except OSError:  # it holds something, or a concurrent job was faster
                return

    def discard(self, names: Sequence[str] = (), folders: Sequence[str] = ()) -> None:
        """Remove files and folders that nobody needs any more. Where that cannot be done, as where credentials permit
        no removal, they stay, and the log says so."""
        try:
            self.remove(names)
            for folder in folders:
                self.remove_folder(folder)
        except StoreError as error:
            log.warning("Files that are of no use any more stay: %s", error)

    def discard_temporary(self) -> None:
        """Discard temporary files of killed writers (local disks only: object stores have none)."""
        if self._connection.is_local:
            self.discard(folders=[TEMPORARY])

    def remove_folder(self, name: str) -> None:
        """Remove a folder and all that is in it; one that is not there is removed. Raises: StoreError."""

        def rm(filesystem: Any) -> None:
            filesystem.invalidate_cache()
            with suppress(FileNotFoundError):  # or a concurrent job was faster
                filesystem.rm(self.path(name), recursive=True)

        self._connection.call(f"Removing {self.url}/{name}", "remove", rm)


def version_of(info: Mapping[str, Any]) -> str:
    """Return the etag or modification time in what a filesystem tells of a file; empty where it tells none."""
    return next((str(info[key]) for key in VERSION_KEYS if info.get(key) is not None), "")


def _mode(name: str) -> int:
    return 0o600 if name.startswith(PRIVATE) and name != PUBLIC else 0o666  # less the umask


def absolute(url: str) -> str:
    """Return a local path as an absolute one, since workers have other working directories; URLs are unchanged."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))
