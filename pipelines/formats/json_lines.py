"""JSON Lines: each line is an object, whose members are columns. What JSON calls a string is text."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.json as pj

from batchloom.pipelines.arrow_functions import pc
from batchloom.pipelines.formats.records import EXACT, LONG, MAX_MEMBERS, RecordFormat, too_many_columns
from batchloom.pipelines.records import is_deeper

MAX_CELLS = 1 << 24  # of the table of a row group
_NAME = re.compile(rb'"([^"\\]*+)"\s*+:')
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
        table = None if _has_many_names(records) else _by_arrow(records, None)
        if table is None or any(map(_may_be_rounded, _leaves(table))):
            table = _guessed([_loaded(record) for record in records])
        return table

    def kinds(self, rows: pa.Table) -> pa.Schema:
        columns = [column.combine_chunks() for column in rows.columns]
        return pa.schema(list(zip(rows.column_names, map(_kind_of, columns), strict=True)))

    def parse(self, records: Sequence[bytes], names: Sequence[str], schema: pa.Schema) -> pa.Table:  # noqa: ARG002
        table = _by_arrow(records, schema)
        if table is not None:
            return table
        rows = [_loaded(record) for record in records]
        return pa.table([_array([row.get(field.name) for row in rows], field.type) for field in schema], schema)


def _has_many_names(records: Sequence[bytes]) -> bool:
    """Return whether objects may have so many members of different names that a table of them has mostly nulls: of
    short records with keys that are data, a mebibyte would become gigabytes."""
    content = b"".join(records)
    return content.count(b":") > MAX_MEMBERS and len(set(_NAME.findall(content))) > MAX_MEMBERS


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
        table.validate()  # lists that hold nothing but nulls come with fewer values than they say
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    return table if table.num_rows == len(records) else None


def _loaded(record: bytes) -> dict[str, Any]:
    """Return the object in a line. Raises: ValueError where it is none."""
    try:
        row = json.loads(record)
        if is_deeper(row, MAX_DEPTH):
            raise RecursionError
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    if not isinstance(row, dict):
        raise ValueError("the line is no JSON object")
    return row


def _guessed(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return rows as a table, with texts where values have no type in common."""
    names = dict.fromkeys(chain.from_iterable(rows))
    if len(names) * len(rows) > MAX_CELLS:
        raise too_many_columns(len(names))
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pa.table({name: _array(values, _kind_in(values)) for name, values in columns.items()})


def _kind_in(values: Iterable[Any]) -> pa.DataType:
    """Return the type of values together."""
    there = [value for value in values if value is not None]
    kinds = set(map(type, there))
    if not kinds:
        return pa.null()
    if kinds == {dict}:
        members: dict[str, list[Any]] = {}
        for name, value in chain.from_iterable(one.items() for one in there):
            members.setdefault(name, []).append(value)
        if len(members) > MAX_MEMBERS:
            return pa.string()
        return pa.struct([(name, _kind_in(values)) for name, values in members.items()])
    if kinds == {list}:
        return pa.list_(_kind_in(chain.from_iterable(there)))
    if kinds == {bool}:
        return pa.bool_()
    if kinds <= {int, float}:
        longest = max((abs(value) for value in there if isinstance(value, int)), default=0)
        if longest < EXACT:
            return pa.float64() if float in kinds else pa.int64()
        return LONG if kinds == {int} and longest < 1 << 63 else pa.string()
    return pa.string()


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    return pa.array([_shaped(value, kind) for value in values], kind)


def _shaped(value: Any, kind: pa.DataType) -> Any:
    """Return a value as one of a type that has room for it: where that is text, anything else is JSON."""
    if value is None:
        return None
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if pa.types.is_list(kind):
        return [_shaped(one, kind.value_type) for one in value]
    if pa.types.is_struct(kind):
        return {field.name: _shaped(value.get(field.name), field.type) for field in kind}
    return float(value) if pa.types.is_floating(kind) else value


def _leaves(values: pa.Table | pa.Array) -> Iterator[pa.Array]:
    """Yield the values that are neither in lists nor objects."""
    if isinstance(values, pa.Table):
        for column in values.columns:
            yield from _leaves(column.combine_chunks())
    elif pa.types.is_list(values.type):
        yield from _leaves(values.values)
    elif pa.types.is_struct(values.type):
        for inner in values.flatten():
            yield from _leaves(inner)
    else:
        yield values


def _may_be_rounded(leaf: pa.Array) -> bool:
    """Return whether Arrow may have taken whole numbers for floating point that has not all of their digits."""
    return pa.types.is_floating(leaf.type) and _has_long(leaf)


def _has_long(numbers: pa.Array) -> bool:
    bounds = pc.min_max(numbers).as_py()
    return any(abs(bound) >= EXACT for bound in bounds.values() if bound is not None)


def _kind_of(values: pa.Array) -> pa.DataType:
    """Return the type, with text in place of the times that Arrow sees, and LONG where whole numbers are long."""
    found = values.type
    if pa.types.is_list(found):
        return pa.list_(_kind_of(values.values))
    if pa.types.is_struct(found):
        return pa.struct(list(zip(found.names, map(_kind_of, values.flatten()), strict=True)))
    if pa.types.is_temporal(found):
        return pa.string()
    return LONG if pa.types.is_integer(found) and _has_long(values) else found
