"""Read turns units into tables: one pass over a stretch of a shard, however many units it holds.

It does not know what a task does with the rows. Bytes that arrived and do not decode, twice, become error rows: the
file's footer has their number, so none is lost. A store's trouble is no damage: it is waited for, and then the units
fail.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from batchloom.models.patience import GaveUpError, Patience, Waiting
from batchloom.pipelines.connection import Connection
from batchloom.pipelines.errors import JobError, RowError, failing_as
from batchloom.pipelines.fields import ERROR_FIELD, ERROR_TYPE
from batchloom.pipelines.patient_file import PatientFile
from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.stages.decode import decoded
from batchloom.pipelines.stages.work import Work

STRETCH_ROWS = 1 << 17  # rows that one read task goes through at most, in whole row groups


def stretches(shards: Sequence[Shard], pending: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Yield groups of pending units that one task reads together: neighbours that share a row group.

    Units of a sliced row group are read in one pass, so a row group is decoded once and not once for each slice.
    """
    by_shard: dict[str, list[Unit]] = {}
    for unit in pending:
        by_shard.setdefault(unit.shard, []).append(unit)
    for shard in shards:
        bounds = _row_group_starts(shard)
        stretch: list[Unit] = []
        for unit in by_shard.get(shard.name, []):
            # A unit that starts inside a row group goes with the one before it: they share the row group.
            if stretch and (unit.start in bounds or unit.start - stretch[0].start > STRETCH_ROWS):
                yield stretch
                stretch = []
            stretch.append(unit)
        if stretch:
            yield stretch


def _row_group_starts(shard: Shard) -> set[int]:
    starts, position = set(), 0
    for num_rows in shard.row_groups:
        starts.add(position)
        position += num_rows
    return starts


@dataclass(frozen=True)
class Read:
    """Callable that Ray maps over stretches: `{"units": json}` in, one Work batch per unit out."""

    schema: pa.Schema
    """The columns to read, with the types shared by all shards."""
    storage_options: Mapping[str, Any] = field(repr=False)
    url: str
    """Any input path: its scheme names the filesystem."""
    patience: Patience = field(default_factory=Patience)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        units = [Unit(**unit) for unit in json.loads(batch["units"][0].as_py())]
        num_done = 0
        try:
            with failing_as(f"Reading {units[0].path}"):
                for unit, rows in self.tables(units):
                    yield Work(unit=unit, rows=rows).to_batch()
                    num_done += 1
        except JobError as error:
            for unit in units[num_done:]:
                yield Work(unit=unit, failure=str(error)).to_batch()

    def tables(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, pa.Table]]:
        """Yield each unit with its rows and an `error` column; null columns and an error where the data are damaged.

        Raises: JobError where the shard has changed since planning; StoreError where the store could not be read.
        """
        num_done = 0
        doubted = -1  # the unit whose bytes did not decode
        waiting = Waiting(self.patience)  # for memory
        while num_done < len(units):
            rest = units[num_done:]
            try:
                for unit, table in zip(rest, self._ranges(rest, is_fresh=doubted == num_done), strict=True):
                    yield unit, table.append_column(ERROR_FIELD, pa.nulls(table.num_rows, ERROR_TYPE))
                    num_done += 1
                    waiting = Waiting(self.patience)
            except MemoryError as error:
                _wait_for_memory(waiting, rest[0].path, error)
            except _DamageError as error:
                if doubted == num_done:
                    yield from ((unit, self._lost(unit, error)) for unit in rest)
                    return
                doubted = num_done

    def _ranges(self, units: Sequence[Unit], is_fresh: bool) -> Iterator[pa.Table]:
        """Yield each unit's rows. Raises: _DamageError where all bytes arrived and do not decode; as `tables`."""
        connection = Connection(self.url, self.storage_options, self.patience, {"read"}, is_fresh)
        with PatientFile(connection, units[0].path, units[0].check_unchanged) as file:
            try:
                for table in self._decoded(file, units):
                    file.check()  # swapped while it was read
                    yield table
            except (OSError, EOFError, pa.ArrowException) as error:
                if file.failure is not None:
                    raise file.failure from error
                if isinstance(error, MemoryError):
                    raise
                file.check()
                raise _DamageError(str(error)) from error

    def _decoded(self, file: PatientFile, units: Sequence[Unit]) -> Iterator[pa.Table]:
        tables = decoded(file, self.schema.names, [(unit.start, unit.stop) for unit in units])
        for unit, table in zip(units, tables, strict=True):
            yield self._with_all_columns(table, unit)

    def _with_all_columns(self, table: pa.Table, unit: Unit) -> pa.Table:
        """Return the table in the schema that all shards share; a column that this shard lacks is null."""
        nulls = pa.nulls(table.num_rows)
        columns = [table[field.name] if field.name in table.column_names else nulls for field in self.schema]
        return pa.table([_cast(*pair, unit) for pair in zip(columns, self.schema, strict=True)], self.schema)

    def _lost(self, unit: Unit, error: Exception) -> pa.Table:
        columns = {field.name: pa.nulls(unit.num_rows, field.type) for field in self.schema}
        reason = RowError("read", "damaged_input", f"{unit.shard} rows {unit.start}-{unit.stop}: {error}")
        return pa.table(columns, schema=self.schema).append_column(
            ERROR_FIELD, pa.array([vars(reason)] * unit.num_rows, ERROR_TYPE)
        )


def _wait_for_memory(waiting: Waiting, path: str, error: MemoryError) -> None:
    """Wait until others may have freed memory. Raises: JobError where that was in vain."""
    try:
        waiting.after(error)
    except GaveUpError as gave_up:
        raise JobError(f"Decoding {path} failed: {gave_up}. Free memory on the nodes, or use larger ones.") from error


class _DamageError(Exception):
    """All bytes arrived, from the file that was planned, and do not decode."""


def _cast(column: pa.ChunkedArray, field: pa.Field, unit: Unit) -> pa.ChunkedArray:
    """JobError where a value does not fit: that is no damage of the rows, and no reason to leave them unanswered."""
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise JobError(
            f"Column {field.name!r} of {unit.shard} holds {column.type}, and all shards together {field.type}, which "
            f"has no room for one of its values ({error}). Give all shards one type, leave the column out of "
            "input.keep_columns, or run the shard as a job of its own."
        ) from error
