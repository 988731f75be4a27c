"""Files of records, which end as lines do: JSON Lines, CSV, text. They have nothing that tells of their rows.

So planning goes through such a file once, in bounded memory: it cuts the file into row groups of a mebibyte, or of one
longer record, counts their rows, and finds columns and types that hold for the whole file, wherever it was cut. What is
read later are whole row groups:

    bytes 0              1048731        2097240    of the content as it is when decompressed
          [ row group 0 )[ row group 1 )[ ...
    rows  0              913            1822

A record that is damaged keeps its place among the rows, and which ones are does not depend on their neighbours.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from batchloom.pipelines.formats.base import Columns, Footer, Format, RowGroupError, compact, cut, overlaps
from batchloom.pipelines.formats.beginnings import LONGEST, told_by
from batchloom.pipelines.formats.contents import Contents, compression_of
from batchloom.pipelines.formats.scan import Scan, records_in
from batchloom.pipelines.planning.spans import Range
from batchloom.pipelines.stores.patient_file import Positioned

if TYPE_CHECKING:
    from batchloom.pipelines.planning.source import Source

FETCHED_BYTES = 8 << 20  # of row groups that are fetched at once
UTF8_MARK = b"\xef\xbb\xbf"
DAMAGE = (ValueError, TypeError, OverflowError, NotImplementedError)  # with pyarrow's own, but for a lack of memory

LONG = pa.decimal128(19)  # stands for whole numbers of which floating point has not all digits, until types are settled
EXACT = 1 << 53  # floating point has all digits of whole numbers below
MAX_MEMBERS = 500  # of an object; with more of different names it is a map, whose keys are data, and text
MAX_COLUMNS = 100_000

_LINE = re.compile(rb"[^\n]*+\n")


@dataclass(frozen=True)
class RecordFormat(Format):
    """A format whose files are records, one after the other."""

    blank: ClassVar[bytes] = b" \t\r\n"
    """What has only these bytes between two ends is no record."""

    @property
    def record(self) -> re.Pattern[bytes]:
        """Matches one record with its end, or nothing where the record does not end."""
        return _LINE

    @abstractmethod
    def guess(self, records: Sequence[bytes], names: Sequence[str]) -> pa.Table:
        """Return the records as rows, with types by what they look like. Raises: DAMAGE where one is damaged."""

    def kinds(self, rows: pa.Table) -> pa.Schema:
        """Return the types of rows that were guessed, as `merged` takes them."""
        return rows.schema

    @abstractmethod
    def parse(self, records: Sequence[bytes], names: Sequence[str], schema: pa.Schema) -> pa.Table:
        """Return the records as rows of `schema`. `names` of all columns. Raises: DAMAGE where one is damaged."""

    def header(self, first: bytes) -> tuple[tuple[str, ...], bool]:  # noqa: ARG002
        """Return the names of the columns by the first record, where records do not have them, and whether it is a
        header and no row. Raises: DAMAGE where the file is none of this format."""
        return (), False

    def merged(self, schema: pa.Schema, other: pa.Schema) -> pa.Schema:
        """Return a schema for the rows of both."""
        fields = {field.name: field for field in schema}
        for field in other:
            fields[field.name] = merged(fields.get(field.name, field), field)
        return pa.schema(list(fields.values()))

    def settled(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema([(field.name, settled(field.type)) for field in schema])

    def describe(self, file: Positioned, path: str, columns: Columns | None, footer_bytes: int) -> Footer:  # noqa: ARG002
        names = tuple[str, ...]()

        def is_header(record: bytes) -> bool:
            nonlocal names
            try:
                names, found = self.header(record)
            except UnicodeDecodeError as error:
                raise pa.ArrowInvalid(_words(error)) from error
            return found

        contents = Contents(file, path)
        beginning = contents.read(0, LONGEST)
        if told := told_by(beginning):
            raise pa.ArrowInvalid(told)
        mark = UTF8_MARK if beginning.startswith(UTF8_MARK) else b""
        scan = Scan(contents, self.record, self.blank, is_header, len(mark))
        schema = pa.schema([])
        rows, read_bytes, kept_bytes, offsets = list[int](), list[int](), list[int](), list[int]()
        for records, start, stop in scan.groups():
            tables = list(self._each(records, lambda some: self.guess(some, names)))
            whole = [table for table in tables if isinstance(table, pa.Table)]
            if not whole and not rows:
                raise pa.ArrowInvalid(f"none of its first {len(records)} records can be read: {_words(tables[0])}")
            for table in whole:
                schema = self.merged(schema, self.kinds(table))
            if len(schema) > MAX_COLUMNS:
                raise too_many_columns(len(schema))
            offsets += [stop] if offsets else [start, stop]
            rows.append(len(records))
            if columns is not None:
                read, kept = _bytes(whole, columns)
                read_bytes.append(read)
                kept_bytes.append(kept)
        schema = schema if rows else pa.schema([(name, pa.null()) for name in names])
        return Footer(
            row_groups=compact(rows),
            read_bytes=compact(read_bytes),
            kept_bytes=compact(kept_bytes),
            num_bytes=0,
            schema=schema,
            offsets=compact(offsets) if offsets else (),
        )

    def read(
        self, file: Positioned, source: "Source", schema: pa.Schema, ranges: Sequence[Range]
    ) -> Iterator[pa.Table]:
        damaged = dict[int, Exception]()
        batches = self._batches(Contents(file, source.path), source, schema, ranges, damaged)
        for (start, stop), table in zip(ranges, cut(batches, ranges), strict=True):
            if lost := {(row, row + 1): str(error) for row, error in damaged.items() if start <= row < stop}:
                raise RowGroupError(lost)
            yield table

    def _batches(
        self,
        contents: Contents,
        source: "Source",
        schema: pa.Schema,
        ranges: Sequence[Range],
        damaged: dict[int, Exception],
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (the row at which it starts, batch) of each row group that is wanted, and note its damaged rows."""
        most = FETCHED_BYTES if compression_of(source.path) is None else 0  # a stream has no requests to save
        for run in _runs(source.places, ranges, most):
            (row, first), (_, last) = run[0], run[-1]
            try:
                content = contents.read(first, last - first)
            except OSError as error:  # what does not decompress ends the file
                raise RowGroupError({(row, source.places[-1][0]): str(error)}) from error
            for (row, begin), (stop, end) in pairwise(run):
                records = records_in(content[begin - first : end - first], self.record, self.blank)
                if len(records) != stop - row:
                    raise RowGroupError({(row, stop): f"{len(records)} records are there, and {stop - row} were"})
                for table in self._each(records, lambda some: self.parse(some, source.columns, schema)):
                    if isinstance(table, Exception):
                        damaged[row] = table
                    rows = _nulls(schema) if isinstance(table, Exception) else table
                    for batch in rows.to_batches():
                        yield row, batch
                        row += batch.num_rows

    def _each(
        self, records: Sequence[bytes], made: Callable[[Sequence[bytes]], pa.Table]
    ) -> Iterator[pa.Table | Exception]:
        """Yield the records as tables, and in the place of each that is damaged what is wrong with it."""
        try:
            b"".join(records).decode()
            table = made(records)
            if table.num_rows != len(records):
                raise ValueError(f"{table.num_rows} rows are in {len(records)} records")
            yield table
        except DAMAGE as error:
            if len(records) == 1:
                yield error
            else:
                middle = len(records) // 2
                yield from self._each(records[:middle], made)
                yield from self._each(records[middle:], made)


def _words(error: object) -> str:
    cure = "; iconv -f LATIN1 -t UTF-8 makes UTF-8 of Latin-1" if isinstance(error, UnicodeDecodeError) else ""
    return f"{error}{cure}"


def too_many_columns(num_columns: int) -> pa.ArrowCapacityError:
    """Return what ends a file; it is no damage of records."""
    return pa.ArrowCapacityError(
        f"its objects have {num_columns} members of different names, as where keys are data; such as jq -c "
        "'to_entries[]' makes an object with key and value of each"
    )


def _runs(places: Sequence[tuple[int, int]], ranges: Sequence[Range], most: int) -> Iterator[list[tuple[int, int]]]:
    """Yield row groups that are wanted, neighbours in one run of `most` bytes or a longer one: the places between."""
    run: list[tuple[int, int]] = []
    for before, after in pairwise(places):
        is_wanted = overlaps(ranges, before[0], after[0])
        if run and not (is_wanted and run[-1] == before and after[1] - run[0][1] <= most):
            yield run
            run = []
        if is_wanted:
            run = [*(run or [before]), after]
    if run:
        yield run


def merged(before: pa.Field, after: pa.Field) -> pa.Field:
    """Return a column for the values of both: numbers widen, and what has no type in common is text."""
    return pa.field(before.name, _common(before.type, after.type))


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return the type that has all values of both, in objects and lists what they hold together."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_common(one.value_type, other.value_type))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        kinds = {field.name: field.type for field in one}
        for field in other:
            kinds[field.name] = _common(kinds.get(field.name, pa.null()), field.type)
        return pa.struct(list(kinds.items())) if len(kinds) <= MAX_MEMBERS else pa.string()
    wider = {one, other} - {pa.int64()}
    return wider.pop() if wider in ({pa.float64()}, {LONG}) else pa.string()


def settled(kind: pa.DataType) -> pa.DataType:
    """Return a type without what only stands for others. Objects that are always empty are none that Parquet has, and
    lists of nulls none that Arrow casts without error."""
    if pa.types.is_list(kind):
        return pa.list_(pa.string() if pa.types.is_null(kind.value_type) else settled(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, settled(field.type)) for field in kind]) if kind.num_fields else pa.string()
    return pa.int64() if kind == LONG else kind


def _bytes(tables: Sequence[pa.Table], columns: Columns) -> tuple[int, int]:
    """Return the bytes of the columns that the task reads, and of those that are kept."""
    read = kept = 0
    for table in tables:
        for name, column in zip(table.column_names, table.columns, strict=True):
            if name in columns.read:
                read += column.nbytes
            elif columns.kept is None or name in columns.kept:
                kept += column.nbytes
    return read, kept


def _nulls(schema: pa.Schema) -> pa.Table:
    """Return one row of nulls."""
    return pa.table([pa.nulls(1, field.type) for field in schema], schema)
