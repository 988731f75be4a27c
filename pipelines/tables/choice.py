"""Which table an input is, if any: the one in the folder that is given. Files of tables are never read as they lie."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fsspec.implementations.local import LocalFileSystem

from batchloom.models.patience import Patience
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError
from batchloom.pipelines.formats.parquet import Parquet
from batchloom.pipelines.stores.connection import Connection
from batchloom.pipelines.stores.listing import Listing, find
from batchloom.pipelines.tables.marks import HUDI, ICEBERG, table_around, tables_among, unlisted
from batchloom.pipelines.tables.table import Table

Pinned = Callable[[], int | None]
"""Returns the version of a table that a job in the output folder began with."""


@dataclass(frozen=True)
class FoundTable:
    """A table that a path of the input names."""

    kind: str
    folder: str
    infos: Listing
    """Of all files below it."""
    metadata: str | None = None
    """The metadata file of an Iceberg table, where the path is one."""


def find_table(
    connection: Connection, base: str, seen: Listing, files: Sequence[str], known: dict[str, str | None]
) -> FoundTable | None:
    """Return the table that a path of the input is.

    `base`: the folder that it names or starts from; `seen`: all that was listed in it; `files` of the input; `known`:
    as `table_around` takes it.
    Raises: InputError where it names files inside of a table, or a folder with tables in it; StoreError.
    """
    path = connection.path.rstrip("/")
    if path.startswith(("http://", "https://")):
        return None  # such a URL names a file, and there are no folders
    named = tables_among([path]).get(folder := path.removesuffix("/metadata/" + path.rpartition("/")[2]))
    if named == ICEBERG and list(files) == [path]:
        infos = connection.call(f"Listing {folder}", "list", lambda one: find(one, folder))
        return FoundTable(ICEBERG, folder, infos, metadata=path)
    below = tables_among([*seen, *connection.call(f"Listing {base}", "list", lambda one: unlisted(one, seen))])
    if base == path and base in below:
        return FoundTable(below[base], base, seen)
    inner = sorted(table for table in below if any(file.startswith(f"{table}/") for file in files))
    if inner:
        more = f" and {len(inner) - 1} more" if len(inner) > 1 else ""
        raise InputError(
            f"Input path {path!r} finds files of tables: {inner[0]} ({below[inner[0]]}){more}. They may hold rows that "
            f"the table does not have. Set input.paths: [{_url(connection, inner[0])}], and run a job for each table."
        )
    for start in dict.fromkeys([base, _real(connection, base)] if files else []):
        around = connection.call(f"Looking at {start}", "list", partial(table_around, start, known))
        if around is not None and around[0] == path:  # an empty folder marks it, which is not in a listing
            return FoundTable(around[1], path, seen)
        if around is not None:
            raise InputError(
                f"Input path {path!r} lies inside of the {around[1]} table {around[0]}, whose files may hold rows that "
                f"the table does not have. Set input.paths: [{_url(connection, around[0])}] to read the table."
            )
    return None


def _url(connection: Connection, path: str) -> str:
    is_local = isinstance(connection.filesystem, LocalFileSystem)
    return path if is_local else str(connection.filesystem.unstrip_protocol(path))


def _real(connection: Connection, folder: str) -> str:
    return os.path.realpath(folder) if isinstance(connection.filesystem, LocalFileSystem) else folder


def kinds_of_tables(config: InputConfig, patience: Patience) -> set[str]:
    """Return which kinds of tables the paths of an input are, by their marks: nothing is listed or refused.

    Raises: StoreError.
    """
    found: set[str | None] = set()
    for given in config.paths:
        connection = Connection(given, config.storage_options, patience)
        path = connection.path.rstrip("/")
        if not path.startswith(("http://", "https://")):
            named = next(iter(tables_among([path]).values()), None)
            around = None if named else connection.call(f"Looking at {path}", "list", partial(table_around, path, {}))
            found.add(around[1] if around else named)
    return {kind for kind in found if kind is not None}


def only_table(config: InputConfig, found: Mapping[str, FoundTable | None]) -> FoundTable | None:
    """Return the table that the input is. `found`: by the paths of the input.

    Raises: InputError where it is one beside other paths, or options do not fit it.
    """
    tables = {path: table for path, table in found.items() if table is not None}
    if not tables:
        if config.version is not None:
            raise InputError(
                f"input.version: is {config.version}, and {config.paths[0]!r} is no Delta or Iceberg table. Leave it "
                "out, or name a table's folder."
            )
        return None
    path, table = next(iter(tables.items()))
    if len(found) > 1:
        raise InputError(
            f"Input path {path!r} is a {table.kind} table, and there are other paths beside it. A table is read alone, "
            "in one version: run a job for each."
        )
    if config.format not in (None, Parquet.name):
        raise InputError(f"input.format: is {config.format}, and {path!r} is a {table.kind} table. Leave it out.")
    if table.kind == HUDI:
        raise InputError(
            f"Input path {path!r} is a Hudi table, which is not read: its files hold rows that it does not have. Write "
            "the rows as Parquet files or as a Delta or Iceberg table (in Spark: spark.read.format('hudi'))."
        )
    return table


def open_table(config: InputConfig, patience: Patience, found: FoundTable, pinned: Pinned) -> Table:
    """Return the version of a table that is read: the one that is asked for, or pinned, or the newest.

    Raises: ConfigError where the table's library is not installed; InputError where it cannot be read; StoreError.
    """
    connection = Connection(config.paths[0], config.storage_options, patience)
    version = pinned() if config.version is None else config.version
    if found.kind == ICEBERG:
        from batchloom.pipelines.tables.iceberg import open_iceberg

        return open_iceberg(connection, found.folder, version, found.infos, found.metadata)
    from batchloom.pipelines.tables.delta import open_delta

    return open_delta(connection, found.folder, version, found.infos)
