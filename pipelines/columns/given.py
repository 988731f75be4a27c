"""Given columns are those that the place of a file tells: its Hive partitions, and where each row comes from."""

from functools import cache
from itertools import chain
from urllib.parse import unquote

import pyarrow as pa

from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.planning.spans import Span

SOURCE = "_source"
"""Kept where `input.keep_columns` names it and no file has a column of that name."""
SOURCE_TYPE = pa.struct([("file", pa.string()), ("row", pa.int64())])
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def partitions(source: Source) -> dict[str, str | None]:
    """Return the values of a file's partitions, where no table tells them by its path: `lang=en/a.parquet`."""
    if source.partitions is not None:
        return dict(source.partitions)
    return partitions_of_path(source.name)


def partitions_of_path(name: str) -> dict[str, str | None]:
    """Return the values of partitions by a file's path below the input's folder."""
    pairs = (folder.partition("=") for folder in name.split("/")[:-1])
    return {key: None if value == NO_VALUE else unquote(value) for key, equals, value in pairs if key and equals}


def with_partitions(schema: pa.Schema, source: Source) -> pa.Schema:
    """Return the schema of a file with the columns of its partitions: one object for all that are equal.

    A partition stands in the place of a column of the same name, as in Hive. A table's has a type.
    """
    keys = partition_columns(source)
    return _with(schema, keys) if keys else schema


def partition_columns(source: Source) -> tuple[str, ...]:
    """Return the columns that the path of a file has, and the file need not have."""
    return tuple(partitions(source)) if source.partitions is None else ()


@cache
def _with(schema: pa.Schema, keys: tuple[str, ...]) -> pa.Schema:
    own = [field for field in schema if field.name not in keys]
    return pa.schema([*own, *((key, pa.string()) for key in keys)])


def without_given(schema: pa.Schema, source: Source) -> pa.Schema:
    """Return the columns that are in the file itself."""
    keys = partitions(source)
    return pa.schema([field for field in schema if field.name not in keys and not _is_source(field)])


def with_given(rows: pa.Table, source: Source, span: Span, schema: pa.Schema) -> pa.Table:
    """Return a span's rows in `schema`, and what they have beyond it behind: with the given columns in their places."""
    values = partitions(source)
    columns = {name: rows[name] for name in rows.column_names}
    for field in schema:
        if _is_source(field):
            own = (
                [(span.start, span.stop)] if source.deleted is None else source.deleted.ranges_of(span.start, span.stop)
            )
            numbers = pa.array(chain.from_iterable(range(*rows) for rows in own), pa.int64())
            columns[field.name] = pa.StructArray.from_arrays([_all(span.shard, span), numbers], fields=list(field.type))
        elif field.name in values:
            columns[field.name] = _all(values[field.name], span).cast(field.type)
    names = dict.fromkeys([*schema.names, *rows.column_names])
    return pa.table({name: columns[name] for name in names}) if len(rows.schema) < len(names) else rows


def _is_source(field: pa.Field) -> bool:
    return bool(field.name == SOURCE and field.type == SOURCE_TYPE)


def _all(value: str | None, span: Span) -> pa.Array:
    return pa.array([value] * span.num_rows, pa.string())
