"""JSON Lines: each line is an object, whose members are columns. What JSON calls a string is text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.json as pj

from batchloom.pipelines.formats.records import RecordFormat
from batchloom.pipelines.records import is_deeper

MAX_DEPTH = 100  # Arrow's parser overflows the stack at some ten thousand


@dataclass(frozen=True)
class JsonLines(RecordFormat):
    """JSON Lines, also called NDJSON."""

    name: ClassVar[str] = "jsonl"
    title: ClassVar[str] = "JSON Lines"
    endings: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")

    def header(self, first: bytes) -> tuple[tuple[str, ...], bool]:
        if first.lstrip().startswith(b"["):
            raise ValueError("it holds a JSON array, and not an object in each line; jq -c '.[]' makes them of it")
        if first.strip() == b"{":
            raise ValueError("its objects have several lines, and not one each; jq -c . writes them so")
        return (), False

    def guess(self, records: Sequence[bytes], names: Sequence[str]) -> pa.Table:  # noqa: ARG002
        table = _by_arrow(records, None)
        if table is None:
            table = _guessed([_loaded(record) for record in records])
        return table.cast(pa.schema([(field.name, _plain(field.type)) for field in table.schema]))

    def parse(self, records: Sequence[bytes], names: Sequence[str], schema: pa.Schema) -> pa.Table:  # noqa: ARG002
        table = _by_arrow(records, schema)
        if table is not None:
            return table
        rows = [_loaded(record) for record in records]
        return pa.table([_array([row.get(field.name) for row in rows], field.type) for field in schema], schema)

    def settled(self, schema: pa.Schema) -> pa.Schema:
        """Objects that are always empty have no type that Parquet could write."""
        return pa.schema([(field.name, pa.string() if _has_empty(field.type) else field.type) for field in schema])


def _by_arrow(records: Sequence[bytes], schema: pa.Schema | None) -> pa.Table | None:
    """Return what Arrow makes of the records, in the columns of the schema, or None where it does not."""
    content = b"".join(records)
    if content.count(b"[") + content.count(b"{") > MAX_DEPTH:
        for record in records:
            if record.count(b"[") + record.count(b"{") > MAX_DEPTH:
                _loaded(record)
    # For Arrow no object ends with its line: where each line begins and ends one, and there are as many, each is one.
    lines = [record.strip() for record in records]
    if not all(line.startswith(b"{") and line.endswith(b"}") for line in lines):
        return None
    options = pj.ReadOptions(use_threads=False, block_size=len(content) + 1)
    unexpected = "infer" if schema is None else "ignore"
    try:
        table = pj.read_json(
            pa.BufferReader(content), options, pj.ParseOptions(schema, unexpected_field_behavior=unexpected)
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    return table if table.num_rows == len(records) else None


def _loaded(record: bytes) -> dict[str, Any]:
    """Return the object in a line. Raises: ValueError where it is none."""
    try:
        row = json.loads(record, parse_int=_number)
        if is_deeper(row, MAX_DEPTH):
            raise RecursionError
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    if not isinstance(row, dict):
        raise ValueError("the line is no JSON object")
    return row


def _number(text: str) -> int | float:
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 63 else float(text)


def _guessed(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return rows as a table, whose columns are texts where their values have no type in common."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values} - {type(None)}
        try:
            if len(kinds) > 1 and kinds != {int, float}:
                raise pa.ArrowTypeError("text")
            columns[name] = _array(values, pa.float64() if len(kinds) > 1 else None)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns[name] = _array(values, pa.string())
    return pa.table(columns)


def _array(values: Sequence[Any], kind: pa.DataType | None) -> pa.Array:
    if kind == pa.string():
        return pa.array(map(_text, values), kind)
    if kind == pa.float64():
        return pa.array([value if value is None else float(value) for value in values], kind)
    return pa.array(values, kind)


def _text(value: Any) -> str | None:
    """Return a text as it is, and anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(found: pa.DataType) -> pa.DataType:
    """Return a type with text in place of the times that Arrow sees in it."""
    if pa.types.is_temporal(found):
        return pa.string()
    if pa.types.is_list(found):
        return pa.list_(_plain(found.value_type))
    if pa.types.is_struct(found):
        return pa.struct([(field.name, _plain(field.type)) for field in found])
    return found


def _has_empty(found: pa.DataType) -> bool:
    if pa.types.is_list(found):
        return _has_empty(found.value_type)
    if pa.types.is_struct(found):
        return found.num_fields == 0 or any(_has_empty(field.type) for field in found)
    return False
