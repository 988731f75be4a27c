"""The Parquet files of a table: their columns are the table's, whatever a file calls them, and of the table's types.

A table knows its columns by number (Iceberg, Delta's mode id) or by a name of its own (Delta's mode name), so that one
can be renamed, or removed and another added under its name, and old files stay as they are.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa

from batchloom.pipelines.formats.base import Columns, Footer, RowGroupError
from batchloom.pipelines.formats.decode import rows_of, schema_of
from batchloom.pipelines.formats.footer import read_footer
from batchloom.pipelines.formats.parquet import Parquet, paths_of
from batchloom.pipelines.planning.spans import Range
from batchloom.pipelines.stores.patient_file import Positioned

if TYPE_CHECKING:
    from batchloom.pipelines.planning.source import Source

NUMBER = b"PARQUET:field_id"
NAMES = b"batchloom:names"  # metadata of a column: what files without numbers call it, a line each
REQUIRED = b"batchloom:required"  # metadata of a column that no file may lack: its values there would not be null


@dataclass(frozen=True)
class TableParquet(Parquet):
    """Parquet files of one version of a table."""

    kind: str
    """Delta or Iceberg."""
    location: str
    version: int
    """Delta's version, or the number of Iceberg's snapshot."""
    newest: int
    """The version that the table had when it was looked at."""
    columns: pa.Schema
    """The table's, whose fields say by their metadata which of a file's fields they are."""

    @property
    def word(self) -> str:
        return "snapshot" if self.kind == "Iceberg" else "version"

    @property
    def news(self) -> str:
        """A sentence on a newer version."""
        if self.newest == self.version:
            return ""
        return (
            f"{self.word.capitalize()} {self.version} of the {self.kind} table {self.location} is read, and it has "
            f"{self.word} {self.newest} by now: input.version: {self.newest} reads that one."
        )

    def settings(self) -> dict[str, object]:
        digest = hashlib.sha256(self.columns.serialize().to_pybytes()).hexdigest()
        return {**super().settings(), "columns": digest[:16]}

    def describe(self, file: Positioned, path: str, columns: Columns | None, footer_bytes: int) -> Footer:
        used = None if columns is None or columns.kept is None else {*columns.read, *columns.kept}
        own = self._names_in(schema_of(read_footer(file, footer_bytes)[0]), [] if columns is None else used)
        if columns is not None:
            kept = own if columns.kept is None else columns.kept
            read = tuple(_renamed(name, own) for name in columns.read)
            columns = Columns(read, tuple(_renamed(name, own) for name in kept if name not in columns.read))
        footer = super().describe(file, path, columns, footer_bytes)
        return replace(footer, schema=self._plain)

    def read(
        self, file: Positioned, source: "Source", schema: pa.Schema, ranges: Sequence[Range]
    ) -> Iterator[pa.Table]:
        metadata, _ = read_footer(file, source.footer_bytes)
        own = self._names_in(schema_of(metadata), schema.names)
        wanted = {own[field.name]: field for field in schema if field.name in own}
        if not wanted:  # none of them was there when the file was written
            yield from (pa.table([pa.nulls(stop - start)], ["none"]).select([]) for start, stop in ranges)
            return
        paths = list(paths_of(field.with_name(name) for name, field in wanted.items()))
        deleted = source.deleted
        lying = ranges if deleted is None else [one for rows in ranges for one in deleted.ranges_of(*rows)]
        tables = rows_of(file, metadata, paths, lying)
        try:
            for start, stop in ranges:
                read, left = [], stop - start
                while left:
                    read.append(next(tables))
                    left -= len(read[-1])
                table = pa.concat_tables(read)
                yield table.rename_columns([wanted[name].name for name in table.column_names])
        except RowGroupError as error:
            if deleted is None:
                raise
            raise RowGroupError({deleted.live(*rows): words for rows, words in error.rows.items()}) from error

    def _names_in(self, file: pa.Schema, used: Collection[str] | None) -> dict[str, str]:
        """Return what a file calls those of the table's columns that it has. `used`: by the job; None: all.

        Raises: ValueError where it cannot be read as the table's, and what to do.
        """
        has_numbers = any(map(_number, file))
        found: dict[str, str] = {}
        for field in self.columns:
            own = _own(field, file, has_numbers)
            is_used = used is None or any(name.partition(".")[0] == field.name or name == field.name for name in used)
            if own is None and is_used and REQUIRED in (field.metadata or {}):
                raise ValueError(f"it lacks column {field.name!r}, which is not null there: rewrite the table's files.")
            if own is None:
                continue
            if is_used and _is_changed(field.type, own.type, has_numbers):
                raise ValueError(
                    f"fields inside of its column {field.name!r} were renamed or replaced since it was written: "
                    "rewrite the table's files, or leave the column out of input.keep_columns."
                )
            found[field.name] = own.name
        if not found and not has_numbers and all(_number(field) and not _names(field) for field in self.columns):
            raise ValueError(
                "its columns have no numbers, and the table no schema.name-mapping.default for such files."
            )
        return found

    @cached_property
    def _plain(self) -> pa.Schema:
        return pa.schema([(field.name, _without_metadata(field.type)) for field in self.columns])


def _number(field: pa.Field) -> bytes | None:
    number: bytes | None = (field.metadata or {}).get(NUMBER)
    return number


def _names(field: pa.Field) -> list[str]:
    """Return what files without numbers call a field of the table."""
    names = (field.metadata or {}).get(NAMES)
    if names is not None:
        return str(names.decode()).split("\n")
    return [] if _number(field) else [field.name]


def _own(field: pa.Field, file: Iterable[pa.Field], has_numbers: bool) -> pa.Field | None:
    """Return the field of a file that is a field of the table."""
    by_number = has_numbers and _number(field)
    names = _names(field)
    same = [one for one in file if (_number(one) == _number(field) if by_number else one.name in names)]
    return same[0] if same else None


def _is_changed(table: pa.DataType, file: pa.DataType, has_numbers: bool) -> bool:
    """Return whether fields inside of a column have other names in a file than in the table.

    Columns inside are read by name: what a file lacks is null, so no other field may have the name.
    """
    if not (pa.types.is_nested(table) and pa.types.is_nested(file)):
        return False
    if not pa.types.is_struct(table):
        pairs = zip(_children(table), _children(file), strict=False)
        return any(_is_changed(ours.type, theirs.type, has_numbers) for ours, theirs in pairs)
    theirs = _children(file)
    for field in table:
        own, namesake = _own(field, theirs, has_numbers), next((one for one in theirs if one.name == field.name), None)
        if own is not namesake or (own is not None and _is_changed(field.type, own.type, has_numbers)):
            return True
    return False


def _children(kind: pa.DataType) -> list[pa.Field]:
    return [kind.field(index) for index in range(kind.num_fields)]


def _without_metadata(kind: pa.DataType) -> pa.DataType:
    """Return a type as other inputs have it: nothing in it tells of the table, and no list or text is a large one."""
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(one.name, _without_metadata(one.type), one.nullable) for one in kind])
    if pa.types.is_map(kind):
        return pa.map_(_without_metadata(kind.key_type), _without_metadata(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_without_metadata(kind.value_type))
    return {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}.get(kind, kind)


def _renamed(name: str, own: dict[str, str]) -> str:
    """Return the name of a column, or of one inside of it, as a file has it."""
    top, dot, rest = name.partition(".")
    return own[name] if name in own else f"{own.get(top, top)}{dot}{rest}"
