"""One weight file, open: byte ranges, its safetensors header, its hash, its version. It knows no tensor and no torch.

A local file is opened once, and everything is read from what was opened: a file renamed into its place meanwhile is not
read by halves.
"""

import hashlib
import json
import math
import mmap
import os
import time
import weakref
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import numpy as np

from batchloom.models.checkpoints.asking import ask
from batchloom.models.checkpoints.hub import ModelSource
from batchloom.models.checkpoints.pinned import PinnedFile, Version
from batchloom.models.errors import CheckpointError
from batchloom.models.patience import GaveUpError

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""The dtypes of safetensors that are read."""
HASHED_BYTES = 8 * 1024 * 1024  # of a store's file, in one request
# Two writes within a clock's tick leave equal times; the coarsest file systems have ticks of two seconds.
SETTLED_NANOSECONDS = 2_000_000_000


@dataclass(frozen=True)
class HeaderEntry:
    """Where a safetensors file has a tensor."""

    dtype: str
    shape: tuple[int, ...]
    first_byte: int


class WeightFile:
    """A weight file on a disk or in an object store."""

    def __init__(self, source: ModelSource, name: str) -> None:
        """Raises: CheckpointError where it cannot be opened."""
        self.source, self.name, self.path = source, name, source.weight_path(name)
        self._descriptor: int | None = None
        try:
            if source.is_local:
                self._descriptor = os.open(self.path, os.O_RDONLY)
                weakref.finalize(self, os.close, self._descriptor)
            self.version = self._version_now()
            self.size = self._asked(source.filesystem.size) if self._descriptor is None else _status(self).st_size
        except OSError as error:
            raise CheckpointError(f"Model {source.uri!r}: {name} cannot be opened ({error}).") from error

    def read(self, start: int, stop: int) -> Bytes:
        """Return a byte range. A local file is memory-mapped, copy-on-write, and reads only touched pages.

        Raises: CheckpointError where it cannot be read, or became shorter.
        """
        if start == stop:
            return np.empty(0, dtype=np.uint8)
        if self._descriptor is None:
            # A bytearray is writable, which torch.from_numpy requires.
            content = self._asked(partial(self.source.filesystem.cat_file, start=start, end=stop), stop - start)
            return np.frombuffer(bytearray(content), dtype=np.uint8)
        begin = start - start % mmap.ALLOCATIONGRANULARITY
        try:
            mapped = mmap.mmap(self._descriptor, stop - begin, access=mmap.ACCESS_COPY, offset=begin)
        except ValueError as error:
            raise CheckpointError(
                f"Model {self.source.uri!r}: {self.name} became shorter than {stop} bytes while it was read. Start "
                "again when the file is whole."
            ) from error
        return np.frombuffer(mapped, dtype=np.uint8, offset=start - begin)

    def open(self) -> IO[bytes]:
        """Return the file as a stream, at its begin."""
        if self._descriptor is None:
            opened: IO[bytes] = self._asked(partial(self.source.filesystem.open, mode="rb"))
            return opened
        stream = os.fdopen(os.dup(self._descriptor), "rb")
        stream.seek(0)
        return stream

    def sha256(self) -> str:
        """Return the hash of its bytes, which are read for it."""
        if self._descriptor is not None:
            with self.open() as file:  # in one small buffer: a new one of 8 MiB a block took as long as the hash
                return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # wants a raw file
        digest = hashlib.sha256()
        for start in range(0, self.size, HASHED_BYTES):  # by ranges: after an outage only the last one is read again
            digest.update(self.read(start, min(start + HASHED_BYTES, self.size)).data)
        return digest.hexdigest()

    def pin(self) -> PinnedFile:
        """Hash the file. Raises: CheckpointError where it changed meanwhile."""
        is_settled = self._descriptor is None or _is_settled(_status(self))
        sha256 = self.sha256()
        self.check_unchanged()
        return PinnedFile(self.name, sha256, self.version if is_settled and self.version else None)

    def check_pinned(self) -> None:
        """Compare it with the plan, where there is one: by its version, else by its hash.

        A store's file is not read for it: one without the planned version is refused. Raises: CheckpointError.
        """
        pinned = self.source.pinned
        planned = None if pinned is None else pinned.file(self.name)
        if pinned is None or (planned and planned.version and planned.version == self.version):
            return
        if planned and planned.version and self._descriptor is None:
            raise CheckpointError(
                pinned.changed(self.name, f"it was {', '.join(planned.version)}; it is {', '.join(self.version)}")
            )
        pinned.check(self.name, self.sha256())

    def check_unchanged(self) -> None:
        """Compare the file with what was opened. Raises: CheckpointError where it was written to or replaced since."""
        if self._version_now() != self.version:
            raise CheckpointError(
                f"Model {self.source.uri!r}: {self.name} changed while it was read, so what was read may be a mixture. "
                "Start again when the file is whole."
            )

    def header(self) -> dict[str, HeaderEntry]:
        """Return the tensors of a safetensors file. Raises: CheckpointError where it is not whole, or no such file."""
        problem = f"Model {self.source.uri!r}: {self.name} is not a whole safetensors file"
        if self.size < 8:
            raise CheckpointError(f"{problem}: {self.size} bytes long. Copy the file again.")
        data_start = 8 + int.from_bytes(self.read(0, 8).tobytes(), "little")
        if data_start > self.size:
            raise CheckpointError(
                f"{problem}: its header should end at byte {data_start}, the file at {self.size}. Copy the file again."
            )
        try:
            header: dict[str, Any] = json.loads(self.read(8, data_start).tobytes())
            header.pop("__metadata__", None)
            read = {name: (str(one["dtype"]), *_shape_and_range(one)) for name, one in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            words = f"its header is none ({type(error).__name__}: {error})"
            raise CheckpointError(f"{problem}: {words}. Copy the file again.") from error
        entries = {}
        for name, (dtype, shape, first, end) in read.items():
            if dtype not in ITEM_BYTES:
                known = ", ".join(ITEM_BYTES)
                raise CheckpointError(f"Model {self.source.uri!r}: tensor {name} is stored as {dtype}; known: {known}.")
            if end - first != math.prod(shape) * ITEM_BYTES[dtype] or data_start + end > self.size:
                raise CheckpointError(
                    f"{problem}: tensor {name} of shape {list(shape)} should end at byte {data_start + end}, the file "
                    f"at {self.size}. Copy the file again."
                )
            entries[name] = HeaderEntry(dtype, shape, data_start + first)
        return entries

    def check_whole(self) -> None:
        """Check, without torch, that a .bin file was not cut. Raises: CheckpointError."""
        with self.open() as file:
            begin = file.read(4)
            is_cut = begin == b"PK\x03\x04" and not zipfile.is_zipfile(file)  # a zip's directory is at its end
        if is_cut or not begin:
            raise CheckpointError(
                f"Model {self.source.uri!r}: {self.name} is cut short, at {self.size} bytes. Copy the file again."
            )

    def _asked(self, call: Callable[[str], Any], num_bytes: int | None = 0) -> Any:
        """Return what a call of the filesystem says of the path. Raises: CheckpointError where it fails for good."""
        try:
            return ask(self.source.filesystem, lambda: call(self.path), num_bytes=num_bytes)
        except GaveUpError as error:
            raise CheckpointError(f"Model {self.source.uri!r}: {self.name} cannot be read: {error}.") from error

    def _version_now(self) -> Version:
        if self._descriptor is None:
            return self.source.version_now(self.name)
        now = _status(self)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return ("missing",)
        if not os.path.samestat(now, there):
            return ("replaced",)
        return (
            f"{now.st_size} bytes",
            f"inode {now.st_ino}",
            f"written at {now.st_mtime_ns} ns",
            f"changed at {now.st_ctime_ns} ns",
        )


def read_bytes(file: WeightFile, start: int, stop: int) -> Bytes:
    """Return a byte range of a weight file: the door that tests watch. Raises: as WeightFile.read."""
    return file.read(start, stop)


def _status(file: WeightFile) -> os.stat_result:
    assert file._descriptor is not None
    return os.fstat(file._descriptor)


def _is_settled(status: os.stat_result) -> bool:
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NANOSECONDS


def _shape_and_range(entry: dict[str, Any]) -> tuple[tuple[int, ...], int, int]:
    first, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if any(not isinstance(number, int) or number < 0 for number in (first, end, *shape)):
        raise ValueError(f"shape {entry['shape']}, bytes {entry['data_offsets']}")
    return shape, first, end
