"""A footer is the end of a Parquet file: it tells where row groups lie, how large they are, and of which columns."""

import threading
from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.models.patience import Patience
from batchloom.models.trouble import Trouble
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import StoreError
from batchloom.pipelines.stores.connection import Connection
from batchloom.pipelines.stores.patient_file import PatientFile

MAGIC = b"PAR1"
TAIL = 8  # bytes: the length of the metadata, and the magic
FIRST_GUESS = 1 << 16  # bytes of a footer before any was seen
LARGEST_GUESS = 1 << 20

_CODES = "BHIQ"  # of array.array: 1, 2, 4 and 8 bytes


@dataclass(frozen=True, slots=True)
class Footer:
    """What planning needs of one file's footer."""

    row_groups: Sequence[int]
    """The number of rows of each row group."""
    read_bytes: Sequence[int]
    """Of each row group, the bytes of the columns that the task reads, before compression."""
    kept_bytes: Sequence[int]
    """The same of the columns that are copied to the output."""
    num_bytes: int
    """The length of the footer at the end of the file."""
    schema: pa.Schema
    """One object for all files of the same schema; without metadata, which differs where the schema does not."""


@dataclass(frozen=True)
class Columns:
    """Whose bytes are counted."""

    read: tuple[str, ...] = ()
    """The columns that the task reads."""
    kept: tuple[str, ...] | None = None
    """The columns that are copied to the output; None: all but those that the task reads."""


def compact(numbers: Collection[int]) -> "array[int]":
    """Return numbers of 0 and more as the smallest array that holds them: 100,000 shards have to fit in memory."""
    largest = max(numbers, default=0)
    return array(next(code for code in _CODES if largest < 1 << (8 * array(code).itemsize)), numbers)


def read_footer(file: PatientFile, num_bytes: int | None = None) -> tuple[pq.FileMetaData, int]:
    """Return the metadata at the end of a file, and how many bytes they are. `num_bytes`: the same, where it is known.

    Raises: StoreError, as `file.read`; pa.ArrowException where the bytes are no footer.
    """

    def read(start: int, stop: int) -> bytes:
        file.seek(start)
        return file.read(stop - start)

    return _footer(read, file.size, num_bytes or FIRST_GUESS)


def _footer(read: Callable[[int, int], bytes], size: int, guess: int) -> tuple[pq.FileMetaData, int]:
    tail = read(max(0, size - max(guess, TAIL)), size)
    num_bytes = int.from_bytes(tail[-TAIL:-4], "little") + TAIL if tail.endswith(MAGIC) else len(tail)
    if num_bytes > size:
        raise pa.ArrowInvalid(f"Its footer has {num_bytes} bytes, as it says, and the file {size}.")
    if num_bytes > len(tail):
        tail = read(size - num_bytes, size - len(tail)) + tail
    return pq.read_metadata(pa.BufferReader(memoryview(tail)[len(tail) - num_bytes :])), num_bytes


def leaves_of(metadata: pq.FileMetaData, names: Iterable[str]) -> list[int]:
    """Return the numbers of the leaf columns that belong to the columns of these names: nested ones have several."""
    paths = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
    chosen = tuple(f"{name}." for name in names)
    return [leaf for leaf, path in enumerate(paths) if f"{path}.".startswith(chosen)]


class Footers:
    """Reads the footers of a job's shards; what the first has shown to be permitted is known for the others.

    May be used by several threads.
    """

    def __init__(self, config: InputConfig, patience: Patience, columns: Columns | None) -> None:
        self._url, self._options, self._patience = config.paths[0], config.storage_options, patience
        self._columns = columns
        self._known: set[str] = set()
        self._schemas: dict[bytes, pa.Schema] = {}
        self._guess = FIRST_GUESS
        self._largest = 0
        self._of_thread = threading.local()

    def read(self, path: str, size: int | None) -> Footer | Exception:
        """Return the footer, or what is wrong. Bytes that arrived and do not decode are read a second time.

        `size` of the file as it was listed, None where it was not: with it, a footer is one request without a handle.
        """
        try:
            return self._of(*(self._opened(path) if size is None else self._ranged(path, size)))
        except StoreError as error:
            if error.trouble is not Trouble.LASTING:
                return error
        except (OSError, pa.ArrowException):
            pass
        try:
            return self._of(*self._opened(path))
        except (OSError, pa.ArrowException, StoreError) as error:
            return error

    def _ranged(self, path: str, size: int) -> tuple[pq.FileMetaData, int]:
        if not hasattr(self._of_thread, "connection"):
            self._of_thread.connection = Connection(self._url, self._options, self._patience, self._known)
        connection: Connection = self._of_thread.connection

        def read(start: int, stop: int) -> bytes:
            def once(filesystem: Any) -> bytes:
                content: bytes = filesystem.cat_file(path, start=start, end=stop)
                return content

            content = connection.call(f"Reading {path}", "read", once, stop - start)
            if len(content) != stop - start:  # cut on its way, or the file is not any more as it was listed
                raise pa.ArrowInvalid(f"{len(content)} of {stop - start} bytes came")
            return content

        return _footer(read, size, self._guess)

    def _opened(self, path: str) -> tuple[pq.FileMetaData, int]:
        connection = Connection(self._url, self._options, self._patience, self._known, is_fresh=True)
        with PatientFile(connection, path) as file:
            try:
                return read_footer(file)
            except Exception:
                if file.failure is not None:
                    raise file.failure from None
                raise

    def _of(self, metadata: pq.FileMetaData, num_bytes: int) -> Footer:
        self._largest = max(self._largest, num_bytes)  # shards are alike: the next footer is hardly longer
        self._guess = min(self._largest + self._largest // 8, LARGEST_GUESS)
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        read_bytes, kept_bytes = ([], []) if self._columns is None else _bytes_of(metadata, groups, self._columns)
        return Footer(
            row_groups=compact([group.num_rows for group in groups]),
            read_bytes=compact(read_bytes),
            kept_bytes=compact(kept_bytes),
            num_bytes=num_bytes,
            schema=self._shared(metadata.schema.to_arrow_schema()),
        )

    def _shared(self, schema: pa.Schema) -> pa.Schema:
        plain = pa.schema([field.remove_metadata() for field in schema])
        return self._schemas.setdefault(plain.serialize().to_pybytes(), plain)


def _bytes_of(
    metadata: pq.FileMetaData, groups: Sequence[pq.RowGroupMetaData], columns: Columns
) -> tuple[list[int], list[int]]:
    read = leaves_of(metadata, columns.read)
    read_bytes = [_num_bytes(group, read) for group in groups]
    if columns.kept is None:
        return read_bytes, [max(0, group.total_byte_size - num) for group, num in zip(groups, read_bytes, strict=True)]
    kept = leaves_of(metadata, columns.kept)
    return read_bytes, [_num_bytes(group, kept) for group in groups]


def _num_bytes(group: pq.RowGroupMetaData, leaves: Sequence[int]) -> int:
    return sum(max(0, group.column(leaf).total_uncompressed_size) for leaf in leaves)
