"""Decode turns ranges of a Parquet file's rows into tables. It fetches the column chunks that hold them.

Row groups that are small together are fetched at once, in as few requests as possible: chunks that are neighbours, or
nearly so, are one request. The chunks of a large row group are streamed, a piece of each at a time. So memory grows
with neither the row groups nor the ranges.

        row group 0                row group 1
        id      url     text       id      url     text          a job that reads id and text
        [-----] ....... [----------------] ....... [-------]     3 requests: text 0 and id 1 are neighbours
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.pipelines.formats.base import RowGroupError, cut, overlaps
from batchloom.pipelines.formats.footer import columns_of_leaves, leaves_of, read_footer
from batchloom.pipelines.planning.spans import Range
from batchloom.pipelines.stores.patient_file import Positioned

FETCHED_BYTES = 32 << 20  # of row groups that are fetched at once
PIECE_BYTES = 8 << 20  # of a column chunk that is streamed; together they have FETCHED_BYTES at most
SMALLEST_PIECE = 1 << 18
SMALLEST_BUFFER = 1 << 14  # of a column that is decoded: 2,000 of SMALLEST_PIECE would be half a gigabyte
BATCH_BYTES = 8 << 20  # of columns, before compression, that are decoded at a time
BATCH_ROWS = 4096  # the same for short rows
REPEATED_BYTES = 64 << 20  # the same where each row may repeat the longest text that a column chunk has room for
REPEATED_ROWS = 256  # but so many rows at least
DICTIONARY_BYTES = 2 << 20  # a chunk of no more, and four for each row, may be a dictionary that rows point into
SPARED = 16  # for each wanted byte, 1/16 byte between two chunks may be fetched as well: it saves a request


@dataclass(frozen=True)
class _RowGroup:
    """What is wanted of a row group."""

    number: int
    rows: Range
    """Of the shard."""
    chunks: tuple[Range, ...]
    """Where the wanted columns lie in the file."""
    decoded_bytes: int
    """Bytes of these columns before compression. Texts that are repeated count once."""
    repeated_bytes: int
    """The most that a text can have which is repeated."""

    @property
    def num_bytes(self) -> int:
        return sum(stop - start for start, stop in self.chunks)

    @property
    def batch_rows(self) -> int:
        row_bytes = self.decoded_bytes // (self.rows[1] - self.rows[0])
        most = max(REPEATED_BYTES // max(self.repeated_bytes, 1), REPEATED_ROWS)
        return min(max(BATCH_BYTES // max(row_bytes, 1), 1), BATCH_ROWS, most)


def decoded(
    file: Positioned, columns: Sequence[str], ranges: Sequence[Range], footer_bytes: int | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of each range, in those of the columns that the shard has.

    `ranges` of the shard's rows: none is empty, they ascend and do not overlap. `footer_bytes`: the length of the
    shard's footer, where it is known.

    Raises: StoreError, and what the file's check raises, as `file.read`; RowGroupError where a row group does not
    decode, OSError, EOFError or pa.ArrowException where the footer does not.
    """
    yield from rows_of(file, read_footer(file, footer_bytes)[0], columns, ranges)


def rows_of(
    file: Positioned, metadata: pq.FileMetaData, columns: Sequence[str], ranges: Sequence[Range]
) -> Iterator[pa.Table]:
    """Yield as `decoded`, of a file whose footer was read."""
    chunks = _Chunks(file)
    there = set(chain.from_iterable(columns_of_leaves(metadata)))
    present = [name for name in columns if name in there]
    leaves = leaves_of(metadata, present)
    parquet = opened(chunks, metadata, len(leaves))
    yield from cut(_batches(parquet, chunks, present, _wanted(metadata, leaves, ranges)), ranges)


def opened(file: Any, metadata: pq.FileMetaData, num_columns: int = 1) -> pq.ParquetFile:
    """Return a file whose footer is known, of which so many columns are read together, each through a buffer.

    Times of INT96, as Spark writes them, may lie after the year 2262.
    """
    return pq.ParquetFile(
        file,
        metadata=metadata,
        buffer_size=min(max(FETCHED_BYTES // max(num_columns, 1), SMALLEST_BUFFER), SMALLEST_PIECE),
        pre_buffer=False,
        page_checksum_verification=True,
        coerce_int96_timestamp_unit="us",
    )


def schema_of(metadata: pq.FileMetaData) -> pa.Schema:
    """Return a file's columns, with the numbers that they may have."""
    return opened(pa.BufferReader(b""), metadata).schema_arrow


def _wanted(metadata: pq.FileMetaData, leaves: Sequence[int], ranges: Sequence[Range]) -> Iterator[_RowGroup]:
    """Yield the row groups that hold rows of the ranges."""
    first = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        stop = first + group.num_rows
        if overlaps(ranges, first, stop):
            chunks = [group.column(leaf) for leaf in leaves]
            yield _RowGroup(
                number=number,
                rows=(first, stop),
                chunks=tuple(sorted(_place_of(chunk) for chunk in chunks)),
                decoded_bytes=sum(chunk.total_uncompressed_size for chunk in chunks),
                repeated_bytes=max((chunk.total_uncompressed_size for chunk in chunks if _repeats(chunk)), default=0),
            )
        first = stop


def _repeats(chunk: pq.ColumnChunkMetaData) -> bool:
    """Return whether all texts may be in a dictionary, each once. Writers give one up at a megabyte."""
    is_small = chunk.total_uncompressed_size <= DICTIONARY_BYTES + 4 * chunk.num_values
    return bool(is_small and chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY")


def _place_of(chunk: pq.ColumnChunkMetaData) -> Range:
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    return start, start + chunk.total_compressed_size


def _batches(
    parquet: pq.ParquetFile, chunks: "_Chunks", columns: Sequence[str], row_groups: Iterator[_RowGroup]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (the shard's row at which it starts, batch) of all rows of the row groups."""
    for together in _joined(row_groups):
        if sum(group.num_bytes for group in together) <= FETCHED_BYTES:
            chunks.fetch(_coalesced([chunk for group in together for chunk in group.chunks]))
        else:
            chunks.stream(together[0].chunks)
        for group in together:
            row, stop = group.rows
            with _naming(group):
                for batch in parquet.iter_batches(group.batch_rows, row_groups=[group.number], columns=columns):
                    yield row, batch
                    row += batch.num_rows
                if row != stop:
                    raise EOFError(f"row group {group.number} ends at row {row} of the file, and not at {stop}")


@contextmanager
def _naming(group: _RowGroup) -> Iterator[None]:
    """Turn what a row group raises that does not decode into an error that names its rows."""
    try:
        yield
    except MemoryError:
        raise
    except (OSError, EOFError, pa.ArrowException) as error:
        raise RowGroupError({group.rows: str(error)}) from error


def _joined(row_groups: Iterator[_RowGroup]) -> Iterator[list[_RowGroup]]:
    """Yield row groups that are fetched together: as many as are small together, or a large one."""
    together: list[_RowGroup] = []
    num_bytes = 0
    for group in row_groups:
        if together and num_bytes + group.num_bytes > FETCHED_BYTES:
            yield together
            together, num_bytes = [], 0
        together.append(group)
        num_bytes += group.num_bytes
    if together:
        yield together


def _coalesced(ranges: Sequence[Range]) -> list[Range]:
    """Return ranges that cover the given ones: the smallest gaps are closed, as long as they sum to little."""
    ranges = sorted(ranges)
    gaps = sorted((max(0, after[0] - before[1]), i) for i, (before, after) in enumerate(pairwise(ranges), 1))
    left = sum(stop - start for start, stop in ranges) // SPARED
    closed = set()
    for gap, i in gaps:
        left -= gap
        if left < 0:
            break
        closed.add(i)
    joined: list[Range] = []
    for i, (start, stop) in enumerate(ranges):
        if i in closed:
            joined[-1] = joined[-1][0], max(joined[-1][1], stop)
        else:
            joined.append((start, stop))
    return joined


class _Chunks(Positioned):
    """The file as pyarrow sees it. What it reads lies in ranges that were named before, of which pieces are held."""

    def __init__(self, file: Positioned) -> None:
        self._file, self.size = file, file.size
        self._ranges: Sequence[Range] = ()
        self._pieces: list[tuple[int, memoryview]] = []  # of each range: (first byte, content)
        self._piece_bytes = 0

    def fetch(self, ranges: Sequence[Range]) -> None:
        """Read the ranges, and forget those before."""
        self._forget(ranges)
        self._pieces = [(start, self._read(start, stop)) for start, stop in ranges]

    def stream(self, ranges: Sequence[Range]) -> None:
        """Read the next piece of a range when it is needed, in place of the one before."""
        self._forget(ranges)
        self._piece_bytes = max(SMALLEST_PIECE, min(PIECE_BYTES, FETCHED_BYTES // max(len(ranges), 1)))

    def read(self, size: int = -1) -> memoryview:  # bytes would be a copy
        left = self.size - self._position
        start, stop = self._position, self._position + (left if size < 0 else min(size, left))
        self._position = stop
        number = bisect_right(self._ranges, start, key=lambda one: one[0]) - 1
        if number < 0 or stop > self._ranges[number][1]:
            return self._read(start, stop)  # what no column chunk is known to hold
        first, piece = self._pieces[number]
        if not first <= start <= stop <= first + len(piece):
            first, piece = start, self._next_piece(number, start, stop)
            self._pieces[number] = first, piece
        return piece[start - first : stop - first]

    def _next_piece(self, number: int, start: int, stop: int) -> memoryview:
        """Return the bytes from `start` on, to `stop` at least. What is held of them already is not read again."""
        first, piece = self._pieces[number]
        end = first + len(piece)
        held = piece[start - first :] if first <= start < end else memoryview(b"")
        begin = start + len(held)
        rest = self._read(begin, max(stop, min(begin + self._piece_bytes, self._ranges[number][1])))
        return memoryview(b"".join((held, rest))) if held else rest

    def _forget(self, ranges: Sequence[Range]) -> None:
        self._ranges, self._pieces = ranges, [(start, memoryview(b"")) for start, _ in ranges]

    def _read(self, start: int, stop: int) -> memoryview:
        self._file.seek(start)
        return memoryview(self._file.read(stop - start))
