"""Iceberg tables: the live files of one snapshot, by `pyiceberg`, and which of their rows are deleted.

Everything is read through the filesystem of the input, and what lies below the table's own location is looked for below
the folder that was given: a table that was copied is read where it is.
"""

import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.pipelines.errors import ConfigError, InputError
from batchloom.pipelines.stores.connection import Connection
from batchloom.pipelines.tables.columns import NAMES, NUMBER, REQUIRED, TableParquet
from batchloom.pipelines.tables.marks import ICEBERG
from batchloom.pipelines.tables.table import LiveFile, Table, as_texts, first_line, path_on

HINT = "version-hint.text"
_METADATA = re.compile(r"v?(\d+)\b.*\.metadata\.json(\.gz)?")
_COMPACT = "Rewrite the table's files (in Spark: CALL system.rewrite_data_files), or a copy of them, and read that."


def open_iceberg(
    connection: Connection, folder: str, version: int | None, listed: Collection[str], named: str | None
) -> Table:
    """Return a snapshot of the Iceberg table in a folder, the current one where none is asked for.

    `listed`: all files below the folder; `named`: the metadata file, where one is given.
    Raises: ConfigError where `pyiceberg` is not installed; InputError where there is no such snapshot, or it cannot be
    read as what it is; StoreError.
    """
    try:
        import pyiceberg.table  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{folder} is an Iceberg table, and its metadata are read by a package that is not here ({error}). "
            "Install it: pip install 'batchloom[iceberg]'."
        ) from error
    path = named or _newest_metadata(connection, folder, listed)
    doing = f"Reading the Iceberg table {folder}"
    return connection.call(doing, "read", lambda _: _readable(connection, folder, path, version))


def _readable(connection: Connection, folder: str, path: str, version: int | None) -> Table:
    from pyiceberg.exceptions import ValidationError

    try:
        return _opened(connection, folder, path, version)
    except FileNotFoundError as error:
        raise InputError(
            f"The Iceberg table {folder} lacks a file that its metadata name ({error}). Was the table copied without "
            "it, or did the snapshot expire meanwhile? Choose another by input.version."
        ) from error
    except (ValidationError, ValueError, NotImplementedError, KeyError, pa.ArrowException) as error:
        raise InputError(f"The Iceberg table {folder} cannot be read: {first_line(error)}. {_COMPACT}") from error


def _opened(connection: Connection, folder: str, path: str, version: int | None) -> Table:
    from pyiceberg.catalog.noop import NoopCatalog
    from pyiceberg.exceptions import ValidationError
    from pyiceberg.serializers import FromInputFile
    from pyiceberg.table import Table as IcebergTable

    files = _files_of(connection, folder, path)
    try:
        metadata = FromInputFile.table_metadata(files.new_input(path))
    except (ValidationError, ValueError) as error:
        raise InputError(
            f"{path} is damaged or holds no metadata of an Iceberg table: {first_line(error)}. Name the one that the "
            "catalog has as input.paths, or put it back."
        ) from error
    files.location = metadata.location.rstrip("/")
    table = IcebergTable((folder,), metadata, path, files, NoopCatalog("given"))
    current = table.current_snapshot()
    if current is None:
        raise InputError(f"The Iceberg table {folder} has no snapshot, so no rows yet.")
    snapshot = current if version is None else table.snapshot_by_id(version)
    if snapshot is None:
        known = ", ".join(str(one.snapshot_id) for one in table.snapshots()[-10:])
        raise InputError(
            f"input.version: {version} is no snapshot of the Iceberg table {folder}. The last that it has: {known}. "
            "Old ones go when a table's snapshots expire."
        )
    number = None if snapshot.snapshot_id == current.snapshot_id else snapshot.schema_id
    schema = table.schema() if number is None else table.schemas()[number]
    tasks = list(table.scan(snapshot_id=snapshot.snapshot_id).plan_files())
    columns = _columns(table, schema, tasks, folder)
    format = TableParquet(ICEBERG, folder, snapshot.snapshot_id, current.snapshot_id, columns)
    deleted = _deleted(files, folder, tasks)
    live = [
        LiveFile(files.path_of(task.file.file_path), _partitions(table, schema, task, columns, folder), deleted[index])
        for index, task in enumerate(tasks)
    ]
    return Table(format, live)


def _newest_metadata(connection: Connection, folder: str, listed: Collection[str]) -> str:
    """Return the metadata file that is the table's state. Raises: InputError where that cannot be told; StoreError."""
    names = [posixpath.basename(path) for path in listed if posixpath.dirname(path) == f"{folder}/metadata"]
    numbers = {name: int(match[1]) for name in names if (match := _METADATA.fullmatch(name))}
    newest = sorted(name for name, number in numbers.items() if number == max(numbers.values()))
    if len(newest) > 1 and HINT in names:
        path = f"{folder}/metadata/{HINT}"
        hint = connection.call(f"Reading {path}", "read", lambda one: one.cat_file(path)).decode().strip()
        meant = {hint, f"{hint}.metadata.json", f"v{hint}.metadata.json"}
        newest = [name for name in newest if name in meant] or newest
    if len(newest) != 1:
        raise InputError(
            f"Which metadata file of the Iceberg table {folder} is its state cannot be told: there are "
            f"{', '.join(newest) or 'none with a number'}. Name the one that the catalog has as input.paths: "
            f"[{folder}/metadata/...metadata.json]."
        )
    return f"{folder}/metadata/{newest[0]}"


def _files_of(connection: Connection, folder: str, path: str) -> Any:
    """Return the input's filesystem as pyiceberg takes one."""
    from pyiceberg.io.fsspec import FsspecFileIO, FsspecInputFile

    class Files(FsspecFileIO):
        location = path  # of the table, by its metadata

        def path_of(self, name: str) -> str:
            own = f"{self.location}/"
            return path_on(connection, folder, name.removeprefix(own) if name.startswith(own) else name)

        def new_input(self, location: str) -> FsspecInputFile:
            return FsspecInputFile(location if location == path else self.path_of(location), connection.filesystem)

    return Files({})


def _columns(table: Any, schema: Any, tasks: Iterable[Any], folder: str) -> pa.Schema:
    """Return the table's columns with their numbers, and the names that files without numbers have for them."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    for task in tasks:
        if task.file.file_format.value != "PARQUET":
            raise InputError(f"The Iceberg table {folder} has files of {task.file.file_format.value}. {_COMPACT}")
    mapping = table.name_mapping()
    others = {str(one.field_id): one.names for one in mapping} if mapping is not None else {}
    columns = []
    for field in schema_to_pyarrow(schema, include_field_ids=True):
        marks = {NUMBER: field.metadata[NUMBER]}
        if names := others.get(field.metadata[NUMBER].decode()):
            marks[NAMES] = "\n".join(names).encode()
        if schema.find_field(field.name).initial_default is not None:
            marks[REQUIRED] = b"1"
        columns.append(field.with_metadata(marks))
    return pa.schema(columns)


def _partitions(table: Any, schema: Any, task: Any, columns: pa.Schema, folder: str) -> dict[str, str | None]:
    """Return the values of columns by which a file's partition is told as they are. Its files may lack them."""
    from pyiceberg.transforms import IdentityTransform

    found = {}
    for index, field in enumerate(table.specs()[task.file.spec_id].fields):
        name = schema.find_column_name(field.source_id)
        if isinstance(field.transform, IdentityTransform) and name in columns.names:
            column = columns.field(name)
            value = pa.array([task.file.partition[index]], column.type)
            found[name] = as_texts(value, column, folder)[0]
    return found


def _deleted(files: Any, folder: str, tasks: Iterable[Any]) -> list[list[int]]:
    """Return, for each file, the rows that position deletes delete. Raises: InputError for deletes of other kinds."""
    read: dict[str, Mapping[str, list[int]]] = {}
    found = []
    for task in tasks:
        rows = set[int]()
        for one in task.delete_files:
            if one.content.name != "POSITION_DELETES" or one.file_format.value != "PARQUET":
                how = one.content.name.lower().replace("_", " ")
                raise InputError(
                    f"Rows of the Iceberg table {folder} are deleted by {how}, in "
                    f"{one.file_format.value} ({posixpath.basename(one.file_path)}), which are not read. {_COMPACT}"
                )
            if one.file_path not in read:
                read[one.file_path] = dict(_positions(files, one.file_path))
            rows.update(read[one.file_path].get(task.file.file_path, ()))
        found.append(sorted(rows))
    return found


def _positions(files: Any, path: str) -> Iterator[tuple[str, list[int]]]:
    with files.new_input(path).open() as file:
        rows = pq.read_table(file, columns=["file_path", "pos"]).group_by("file_path").aggregate([("pos", "list")])
    yield from zip(rows["file_path"].to_pylist(), rows["pos_list"].to_pylist(), strict=True)
