"""Columns inside of structs, by their paths: `doc.body`. A column whose name has the dot itself comes first."""

from collections.abc import Iterable

import pyarrow as pa

from batchloom.pipelines.arrow_functions import pc

INSIDE = {b"batchloom:inside": b"1"}  # metadata of a field whose name is a path


def with_paths(schema: pa.Schema, wanted: Iterable[str]) -> pa.Schema:
    """Return the schema of a file with those wanted columns that are paths in it."""
    paths = {name: _type_at(schema, name) for name in dict.fromkeys(wanted) if "." in name and name not in schema.names}
    return pa.schema([*schema, *((name, kind) for name, kind in paths.items() if kind is not None)])


def marked(schema: pa.Schema, files: Iterable[pa.Schema]) -> pa.Schema:
    """Return the chosen columns, those marked that no file has under their whole names."""
    names = {name for file in files for name in file.names}
    return pa.schema([field if field.name in names else field.with_metadata(INSIDE) for field in schema])


def outermost(schema: pa.Schema) -> pa.Schema:
    """Return the columns of a file that hold the chosen ones: `doc` with `body` alone, where nobody wants all of it."""
    fields = {field.name: field for field in schema if field.metadata != INSIDE}
    for field in schema:
        if field.metadata == INSIDE and (top := field.name.partition(".")[0]) not in fields:
            same = [one for one in schema if one.metadata == INSIDE and one.name.startswith(f"{top}.")]
            fields[top] = pa.field(top, pa.struct(_inside([(one.name.split(".")[1:], one.type) for one in same])))
    return pa.schema(list(fields.values()))


def column_at(table: pa.Table, field: pa.Field) -> pa.ChunkedArray | None:
    """Return a chosen column of a file's table; None where it has none."""
    if field.metadata != INSIDE:
        place = table.schema.get_field_index(field.name)
        return table.column(place) if place >= 0 else None
    top, *path = field.name.split(".")
    if _type_at(table.schema, field.name) is None:
        return None
    return pc.struct_field(table[top], path)


def _type_at(schema: pa.Schema, name: str) -> pa.DataType | None:
    top, *path = name.split(".")
    kind = schema.field(top).type if schema.names.count(top) == 1 else None
    for step in path:
        place = kind.get_field_index(step) if kind is not None and pa.types.is_struct(kind) else -1
        kind = kind.field(place).type if kind is not None and place >= 0 else None
    return kind


def _inside(paths: list[tuple[list[str], pa.DataType]]) -> list[pa.Field]:
    """Return the fields of a struct that has these paths."""
    steps = dict.fromkeys(path[0] for path, _ in paths)
    fields = []
    for step in steps:
        below = [(path[1:], kind) for path, kind in paths if path[0] == step]
        leaf = next((kind for path, kind in below if not path), None)
        fields.append(pa.field(step, pa.struct(_inside(below)) if leaf is None else leaf))
    return fields
