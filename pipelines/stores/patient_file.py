"""A patient file is read-only: where a read fails, it goes on with a new handle. It knows no Parquet.

It fetches exactly the bytes that it is asked for, in one request a read: who needs many small pieces coalesces them.
"""

import io
import os
from collections.abc import Callable, Mapping
from typing import Any

from fsspec.caching import BaseCache, MMapCache
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

from batchloom.models.trouble import Trouble
from batchloom.pipelines.errors import PipelineError, StoreError
from batchloom.pipelines.stores.connection import Connection

Check = Callable[[Mapping[str, Any]], None]


class Positioned(io.RawIOBase):
    """A file that is read from a position on. Who derives from it has `size` and `read`."""

    size: int
    _position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position


class PatientFile(Positioned):
    """One file of a store.

    `failure` tells a store's trouble from damage: where it is None, all bytes that were asked for have arrived.
    """

    def __init__(self, connection: Connection, path: str, check: Check | None = None) -> None:
        """`check` is called with the filesystem's info of each handle that is opened; it raises where that is wrong.

        Raises: StoreError, and what `check` raises.
        """
        self.failure: PipelineError | None = None
        self._connection, self._path = connection, path
        self._check: Check = check or (lambda _: None)
        self._handle: Any = None
        self._is_checked = True
        self.size = self._call(self._open)

    def read(self, size: int | None = -1) -> bytes:
        """Return the next `size` bytes, fewer only at the end. Raises: StoreError, and what `check` raises."""
        left = max(0, self.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        self._is_checked = False
        try:
            content: bytes = self._call(lambda filesystem: self._read(filesystem, wanted), self._num_to_fetch(wanted))
        except StoreError as error:
            if error.trouble is Trouble.LASTING:
                self.check()  # where the file has changed, this is what is told
            raise
        self._position += wanted
        return content

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
        super().close()

    def check(self) -> None:
        """Look at the file's identity once more, if anything was read since. Raises: StoreError, as `check`."""
        if not self._is_checked:
            self._call(self._look)
            self._is_checked = True

    def _call(self, attempt: Callable[[Any], Any], num_bytes: int = 0) -> Any:
        def once(filesystem: Any) -> Any:
            try:
                return attempt(filesystem)
            except Exception:
                self._handle = None  # may hang, or lie in another thread's hands
                raise

        try:
            return self._connection.call(f"Reading {self._path}", "read", once, num_bytes)
        except PipelineError as error:
            self.failure = error
            raise

    def _open(self, filesystem: Any) -> int:
        self._handle = _exact(filesystem.open(self._path, "rb"))
        info = self._info(filesystem)
        self._check(info)
        size: int = info["size"]
        return size

    def _read(self, filesystem: Any, wanted: int) -> bytes:
        if self._handle is None:
            self._open(filesystem)
        self._handle.seek(self._position)
        content: bytes = self._handle.read(wanted)
        if len(content) != wanted:
            raise ConnectionError(f"{len(content)} of {wanted} bytes came")
        return content

    def _num_to_fetch(self, wanted: int) -> int:
        """Return the bytes that a read may transfer: a cache on disk fetches the rest of a block as well."""
        has_blocks = isinstance(getattr(self._handle, "cache", None), MMapCache)
        return wanted + (self._handle.blocksize if has_blocks else 0)

    def _look(self, filesystem: Any) -> None:
        if isinstance(filesystem, LocalFileSystem) and self._handle is not None:
            self._check(self._info(filesystem))
        else:
            filesystem.invalidate_cache()
            self._check(filesystem.info(self._path))

    def _info(self, filesystem: Any) -> Mapping[str, Any]:
        """Return what the open handle is a handle of: a local file may have been replaced, and is still read whole."""
        if isinstance(filesystem, LocalFileSystem):
            found = os.fstat(self._handle.fileno())
            return {"size": found.st_size, "mtime": found.st_mtime}
        info: Mapping[str, Any] = getattr(self._handle, "details", None) or filesystem.info(self._path)
        return info


def _exact(handle: Any) -> Any:
    """Make a handle fetch what it is asked for: by default it reads 5 to 50 MiB ahead, of columns that nobody wants.

    The option `cache_type="none"` would do the same, but not all filesystems know it. A cache on disk (blockcache::)
    was asked for, and stays.
    """
    if isinstance(handle, AbstractBufferedFile) and not isinstance(handle.cache, MMapCache):
        handle.cache = BaseCache(handle.blocksize, handle._fetch_range, handle.size)
    return handle
