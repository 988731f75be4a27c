"""A table as a job reads it: one version of it, which does not change, whatever is written to the table later."""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import fsspec
import pyarrow as pa

from batchloom.pipelines.errors import InputError
from batchloom.pipelines.stores.connection import Connection
from batchloom.pipelines.tables.columns import TableParquet


@dataclass(frozen=True)
class LiveFile:
    """A data file of a version of a table."""

    path: str
    """On the filesystem."""
    partitions: Mapping[str, str | None] = field(default_factory=dict)
    """Columns that have one value in all rows of the file, by the table's log: as texts."""
    deleted: Sequence[int] = ()
    """Rows of the file that the table does not have, ascending."""


@dataclass(frozen=True)
class Table:
    """A version of a table."""

    format: TableParquet
    files: Sequence[LiveFile]


def first_line(error: Exception) -> str:
    """Return what an error says: libraries add traces of their own."""
    return str(error).strip().split("\n")[0].rstrip(".")


def as_texts(values: pa.Array, column: pa.Field, table: str) -> list[str | None]:
    """Return values of a partition's column as texts that can be cast back. Raises: InputError where there are none."""
    try:
        texts = values.cast(column.type).cast(pa.string())
        if texts.cast(column.type).equals(values.cast(column.type)):
            found: list[str | None] = texts.to_pylist()
            return found
    except (pa.ArrowException, UnicodeDecodeError):
        pass
    raise InputError(
        f"{table} is partitioned by {column.name!r}, which holds {column.type}: such values are not read from a "
        "table's log. Partition it by another column."
    )


def path_on(connection: Connection, folder: str, name: str) -> str:
    """Return where a file lies that a table's log names: below its folder, or anywhere in the same store.

    Raises: InputError where it lies in another store.
    """
    scheme, has_scheme, _ = name.partition("://")
    if not has_scheme:
        return posixpath.join(folder, name)
    try:
        if isinstance(connection.filesystem, fsspec.get_filesystem_class(scheme)):
            path: str = connection.filesystem._strip_protocol(name)
            return path
    except (ValueError, ImportError):
        pass
    raise InputError(
        f"The table {folder} has files in another store ({name}), and a job reads from one. "
        "Copy the table as a whole, with the engine that wrote it."
    )
