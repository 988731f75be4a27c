"""The interface between kinds of input files and the pipeline: a format describes a file once, and reads ranges of it.

A *row group* is a range of a file's rows that is read as a whole: Parquet has its own, and a file of records is cut
into stretches of bytes that end where a record does.
"""

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from batchloom.pipelines.planning.spans import Range
from batchloom.pipelines.stores.patient_file import Positioned

if TYPE_CHECKING:
    from batchloom.pipelines.planning.source import Source

_CODES = "BHIQ"  # of array.array: 1, 2, 4 and 8 bytes


@dataclass(frozen=True, slots=True)
class Footer:
    """What planning needs of one file: a Parquet file ends in it, others are gone through once."""

    row_groups: Sequence[int]
    """The number of rows of each row group."""
    read_bytes: Sequence[int]
    """Of each row group, the bytes of the columns that the task reads, before compression."""
    kept_bytes: Sequence[int]
    """The same of the columns that are copied to the output."""
    num_bytes: int
    """The length of a Parquet file's footer; 0 for others."""
    schema: pa.Schema
    """One object for all files of the same schema; without metadata, which differs where the schema does not.
    What is in the files decides `Format.settled`."""
    offsets: Sequence[int] = ()
    """The byte at which each row group begins, and at which the last ends, of the content as it is when decompressed;
    empty for Parquet, whose footer has them."""


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


class Format(ABC):
    """A kind of input file. Picklable: it is sent to the workers."""

    name: ClassVar[str]
    """As `input.format` has it."""
    title: ClassVar[str]
    """As messages have it."""
    endings: ClassVar[tuple[str, ...]]
    """Of file names, before that of a compression."""
    values_are_texts: ClassVar[bool] = False
    """A file has no types but what its values look like: a column may be read as text, whatever they look like."""
    has_own_types: ClassVar[bool] = False
    """A file says which types its columns have, so two files that say different things contradict each other."""

    @abstractmethod
    def describe(self, file: Positioned, path: str, columns: Columns | None, footer_bytes: int) -> Footer:
        """Return what planning needs of a file. `columns` whose bytes are counted; `footer_bytes`: how long it may be.

        Raises: pa.ArrowException, OSError or ValueError where the file is none of this format; as `file.read`.
        """

    @abstractmethod
    def read(
        self, file: Positioned, source: "Source", schema: pa.Schema, ranges: Sequence[Range]
    ) -> Iterator[pa.Table]:
        """Yield the rows of each range, in those columns of `schema` that the file has.

        `ranges` of the file's rows: none is empty, they ascend and do not overlap. Raises: as `file.read`;
        RowGroupError where rows do not decode, OSError, EOFError or pa.ArrowException where nothing does.
        """

    def settled(self, schema: pa.Schema) -> pa.Schema:
        """Return the types of columns that the files have together, by what `describe` found in each."""
        return schema

    @property
    def naming(self) -> str:
        """A sentence on how the names of columns were found; empty where a file tells them itself."""
        return ""

    @property
    def news(self) -> str:
        """A sentence on rows that came to the input and are not read; empty where none are known."""
        return ""

    def settings(self) -> dict[str, object]:
        """Return what decides which rows a file has, JSON-ready."""
        return {"format": self.name}


class RowGroupError(EOFError):
    """Rows that do not decode."""

    def __init__(self, rows: Mapping[Range, str]) -> None:
        super().__init__(next(iter(rows.values())))
        self.rows = rows
        """Of the file, in ascending order, and what is wrong with each."""


def cut(batches: Iterator[tuple[int, pa.RecordBatch]], ranges: Sequence[Range]) -> Iterator[pa.Table]:
    """Yield the rows of each range, and hold no batch longer than a range needs it.

    `batches` with the row at which each starts. Raises: EOFError where they end before the ranges.
    """
    held: list[tuple[int, pa.RecordBatch]] = []
    end = 0  # of the rows that came
    for start, stop in ranges:
        held = [(row, batch) for row, batch in held if row + batch.num_rows > start]
        while end < stop:
            row, batch = next(batches, (0, None))
            if batch is None:
                raise EOFError(f"it ends at row {end}")
            end = row + batch.num_rows
            if end > start:
                held.append((row, batch))
        yield pa.Table.from_batches([batch.slice(max(start - row, 0), stop - max(start, row)) for row, batch in held])


def overlaps(ranges: Sequence[Range], start: int, stop: int) -> bool:
    """Return whether any of the ranges, which ascend, has rows of `[start, stop)`."""
    num_before = bisect_right(ranges, stop - 1, key=lambda one: one[0])
    return start < stop and num_before > 0 and ranges[num_before - 1][1] > start
