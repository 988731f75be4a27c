"""A reader turns spans of rows into tables: one pass over each shard, however many spans of it are wanted.

It does not know what a task does with the rows. Bytes that arrived and do not decode, twice, become error rows: the
plan has their number, so none is lost. A store's trouble is no damage: it is waited for, and then it is an
error in place of the rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import pyarrow as pa

from batchloom.models.patience import GaveUpError, Patience, Waiting
from batchloom.pipelines.columns.given import with_given, without_given
from batchloom.pipelines.columns.nested import column_at, outermost
from batchloom.pipelines.errors import JobError, RowError, failing_as
from batchloom.pipelines.fields import ERROR_FIELD, ERROR_TYPE
from batchloom.pipelines.formats.base import Format, RowGroupError
from batchloom.pipelines.formats.parquet import Parquet
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.planning.spans import Range, Span, common, outside
from batchloom.pipelines.stores.connection import Connection
from batchloom.pipelines.stores.patient_file import PatientFile


@dataclass(frozen=True)
class Reader:
    """Reads some columns of the input's shards."""

    schema: pa.Schema
    """The columns to read, with the types shared by all shards."""
    storage_options: Mapping[str, Any] = field(repr=False)
    url: str
    """Any input path: its scheme names the filesystem."""
    patience: Patience = field(default_factory=Patience)
    format: Format = Parquet()  # noqa: RUF009
    """Of all shards."""

    def tables(self, sources: Mapping[str, Source], groups: Sequence[Sequence[Span]]) -> Iterator[pa.Table | JobError]:
        """Yield the rows of each group of spans, and an `error` column; or why they cannot be had.

        Where the data are damaged, columns are null and the rows have an error. A JobError says that the shard has
        changed since planning, or that the store could not be read.
        """
        tables = self._spans(sources, [span for group in groups for span in group])
        for group in groups:
            read = [next(tables) for _ in group]
            error = next((one for one in read if isinstance(one, JobError)), None)
            yield error or pa.concat_tables(read)

    def _spans(self, sources: Mapping[str, Source], spans: Sequence[Span]) -> Iterator[pa.Table | JobError]:
        for shard, members in groupby(spans, lambda span: span.shard):
            run = list(members)
            num_done = 0
            try:
                with failing_as(f"Reading {sources[shard].path}"):
                    own = replace(self, schema=without_given(self.schema, sources[shard]))
                    read = own._of_shard(sources[shard], run) if own.schema.names else map(_no_columns, run)
                    for span, table in zip(run, read, strict=True):
                        yield with_given(table, sources[shard], span, self.schema)
                        num_done += 1
            except JobError as error:
                yield from (error for _ in run[num_done:])

    def _of_shard(self, source: Source, spans: Sequence[Span]) -> Iterator[pa.Table]:
        """Yield the rows of each span, which are ascending. Raises: JobError as `tables` yields it."""
        num_done = 0
        doubted = -1  # the span whose bytes did not decode
        waiting = Waiting(self.patience)  # for memory
        while num_done < len(spans):
            rest = spans[num_done:]
            try:
                for table in self._ranges(source, rest, is_fresh=doubted == num_done):
                    yield table.append_column(ERROR_FIELD, pa.nulls(table.num_rows, ERROR_TYPE))
                    num_done += 1
                    waiting = Waiting(self.patience)
            except MemoryError as error:
                _wait_for_memory(waiting, source.path, error)
            except _DamageError as error:
                if doubted == num_done:
                    yield self._without_damage(source, rest[0], error)
                    num_done += 1
                else:
                    doubted = num_done

    def _without_damage(self, source: Source, span: Span, damage: "_DamageError") -> pa.Table:
        """Return the rows of a span of which some are damaged: null and with an error where they are."""
        own = [(span.start, span.stop)]
        lost = common(own, list(damage.rows)) if damage.rows else own
        left = common(own, outside(span.stop, lost))
        pieces = {rows: Span(span.shard, span.identity, *rows) for rows in sorted([*lost, *left])}
        whole = self._of_shard(source, [pieces[rows] for rows in left])
        return pa.concat_tables(
            [self._lost(piece, damage) if rows in lost else next(whole) for rows, piece in pieces.items()]
        )

    def _ranges(self, source: Source, spans: Sequence[Span], is_fresh: bool) -> Iterator[pa.Table]:
        """Yield each span's rows. Raises: _DamageError where all bytes arrived and do not decode; as `_of_shard`."""
        connection = Connection(self.url, self.storage_options, self.patience, {"read"}, is_fresh)
        with PatientFile(connection, source.path, source.check_unchanged) as file:
            try:
                ranges = [(span.start, span.stop) for span in spans]
                tables = self.format.read(file, source, outermost(self.schema), ranges)
                for span, table in zip(spans, tables, strict=True):
                    whole = self._with_all_columns(table, span)
                    file.check()  # swapped while it was read
                    yield whole
            except (OSError, EOFError, pa.ArrowException) as error:
                if file.failure is not None:
                    raise file.failure from error
                if isinstance(error, MemoryError):
                    raise
                file.check()
                raise _DamageError(error) from error

    def _with_all_columns(self, table: pa.Table, span: Span) -> pa.Table:
        """Return the table in the schema that all shards share; a column that this shard lacks is null."""
        columns = [column_at(table, field) for field in self.schema]
        nulls = pa.chunked_array([pa.nulls(table.num_rows)])
        pairs = zip(columns, self.schema, strict=True)
        return pa.table(
            [_cast(nulls if column is None else column, field, span) for column, field in pairs], self.schema
        )

    def _lost(self, span: Span, damage: "_DamageError") -> pa.Table:
        columns = {field.name: pa.nulls(span.num_rows, field.type) for field in self.schema}
        own = (words for (start, stop), words in damage.rows.items() if start <= span.start < stop)
        words = next(own, str(damage))
        reason = RowError("read", "damaged_input", f"{span.shard} rows {span.start}-{span.stop}: {words}")
        return pa.table(columns, schema=self.schema).append_column(
            ERROR_FIELD, pa.array([vars(reason)] * span.num_rows, ERROR_TYPE)
        )


def _no_columns(span: Span) -> pa.Table:
    return pa.table([pa.nulls(span.num_rows, ERROR_TYPE)], pa.schema([ERROR_FIELD]))


def _wait_for_memory(waiting: Waiting, path: str, error: MemoryError) -> None:
    """Wait until others may have freed memory. Raises: JobError where that was in vain."""
    try:
        waiting.after(error)
    except GaveUpError as gave_up:
        raise JobError(f"Decoding {path} failed: {gave_up}. Free memory on the nodes, or use larger ones.") from error


class _DamageError(Exception):
    """All bytes arrived, from the file that was planned, and do not decode."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.rows: Mapping[Range, str] = error.rows if isinstance(error, RowGroupError) else {}
        """That are damaged, and how, where that is known."""


def _cast(column: pa.ChunkedArray, field: pa.Field, span: Span) -> pa.ChunkedArray:
    """JobError where a value does not fit: that is no damage of the rows, and no reason to leave them unanswered."""
    if column.type == field.type:
        return column  # a cast of lists of nulls to what they are loses values
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise JobError(
            f"Column {field.name!r} of {span.shard} holds {column.type}, and all shards together {field.type}, which "
            f"has no room for one of its values ({error}). Give all shards one type, leave the column out of "
            "input.keep_columns, or run the shard as a job of its own."
        ) from error
