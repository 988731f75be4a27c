"""Delta tables: the live files of one version, by `deltalake`, and which of their rows are deleted."""

import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from batchloom.pipelines.errors import ConfigError, InputError
from batchloom.pipelines.stores.connection import Connection
from batchloom.pipelines.tables.columns import NAMES, NUMBER, TableParquet
from batchloom.pipelines.tables.delta_log import DeltaLog, fetch_vectors
from batchloom.pipelines.tables.marks import DELTA
from batchloom.pipelines.tables.table import LiveFile, Table, as_texts, first_line, path_on

VECTORS = "deletionVectors"
# Of reader features, those that change nothing in how live files are read, or what is done here.
UNDERSTOOD = {VECTORS, "columnMapping", "timestampNtz", "typeWidening", "typeWidening-preview", "v2Checkpoint",
              "vacuumProtocolCheck", "variantType", "variantType-preview"}  # fmt: skip


def open_delta(connection: Connection, folder: str, version: int | None, listed: Collection[str]) -> Table:
    """Return a version of the Delta table in a folder, the newest where none is asked for.

    `listed`: all files below the folder. Raises: ConfigError where `deltalake` is not installed; InputError where there
    is no such version, or it cannot be read as what it is; StoreError.
    """
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError as error:
        raise ConfigError(
            f"{folder} is a Delta table, and its log is read by a package that is not here ({error}). "
            "Install it: pip install 'batchloom[delta]'."
        ) from error
    log = DeltaLog.find(connection, folder)
    version = log.newest if version is None else version
    with tempfile.TemporaryDirectory(prefix="batchloom-delta-") as copied:
        log.copy(connection, version, Path(copied))
        try:
            table = DeltaTable(copied, version=version)
            _check_features(folder, version, table.protocol().reader_features or ())
            has_vectors = VECTORS in (table.protocol().reader_features or ())
            if has_vectors:
                fetch_vectors(connection, folder, listed, Path(copied))
            deleted = _deleted(table, copied) if has_vectors else {}
            actions = pa.table(table.get_add_actions())
            schema = pa.schema(table.schema().to_arrow())
            mode = table.metadata().configuration.get("delta.columnMapping.mode", "none")
        except (DeltaError, OSError) as error:
            raise InputError(
                f"Version {version} of the Delta table {folder} cannot be read by deltalake: {first_line(error)}. "
                "Deletion vectors of other tables and features that it does not know can be removed by writing the "
                "table again (in Spark: REORG TABLE ... APPLY (PURGE), OPTIMIZE)."
            ) from error
    columns = pa.schema([_marked(field, mode) for field in schema])
    format = TableParquet(DELTA, folder, version, log.newest, columns)
    return Table(format, list(_files(connection, folder, actions, columns, deleted)))


def _files(
    connection: Connection,
    folder: str,
    actions: pa.Table,
    columns: pa.Schema,
    deleted: Mapping[str, Any],
) -> Iterable[LiveFile]:
    values: dict[str, list[str | None]] = {}
    if "partition" in actions.column_names:
        whole = actions["partition"].combine_chunks()
        for field in whole.type:
            values[field.name] = as_texts(whole.field(field.name), columns.field(field.name), folder)
    for row, encoded in enumerate(actions["path"].to_pylist()):
        path = path_on(connection, folder, unquote(encoded))
        partitions = {name: texts[row] for name, texts in values.items()}
        yield LiveFile(path, partitions, deleted.get(unquote(encoded), ()))


def _check_features(folder: str, version: int, features: Iterable[str]) -> None:
    if unknown := sorted(set(features) - UNDERSTOOD):
        raise InputError(
            f"Version {version} of the Delta table {folder} needs readers that know {', '.join(unknown)}, and this one "
            "does not. Write it without (in Spark: ALTER TABLE ... DROP FEATURE), or a copy of it."
        )


def _deleted(table: Any, copied: str) -> dict[str, Any]:
    """Return the rows that deletion vectors delete, by the files' paths as the log has them."""
    found = {}
    for batch in table.deletion_vectors():
        rows = pa.record_batch(batch)
        for uri, is_live in zip(rows["filepath"].to_pylist(), rows["selection_vector"], strict=True):
            path = unquote(uri).removeprefix(Path(copied).resolve().as_uri() + "/")
            found[path] = np.flatnonzero(~is_live.values.to_numpy(zero_copy_only=False)).tolist()
    return found


def _marked(field: pa.Field, mode: str) -> pa.Field:
    """Return a column with what tells it in the files, and so the fields inside of it."""
    said = field.metadata or {}
    number, name = said.get(b"delta.columnMapping.id"), said.get(b"delta.columnMapping.physicalName")
    marks = {NUMBER: number} if mode == "id" and number else {NAMES: name or field.name.encode()}
    return pa.field(field.name, _marked_type(field.type, mode), metadata=marks)


def _marked_type(kind: pa.DataType, mode: str) -> pa.DataType:
    if pa.types.is_struct(kind):
        return pa.struct([_marked(field, mode) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_marked_type(kind.key_type, mode), _marked_type(kind.item_type, mode))
    if pa.types.is_list(kind):
        return pa.list_(_marked_type(kind.value_type, mode))
    return kind
