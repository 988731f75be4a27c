"""Columns as JSON has them: objects, lists, texts, numbers, booleans and null. It writes no file.

What JSON has no word for: times, dates and decimals are texts, as Arrow writes them (times with a zone in UTC), bytes
are base64, durations are whole numbers of their unit, maps are lists of keys and values, and NaN and infinity are null.
Bytes of a text that are no UTF-8 become U+FFFD. A float32 is the shortest number that reads back as the same float32.
"""

import base64
import json
from collections.abc import Callable

import pyarrow as pa

from batchloom.pipelines.arrow_functions import pc

ROWS_AT_ONCE = 1024  # that are Python objects, which take several times as much as in Arrow
BYTES_AT_ONCE = 1 << 26  # of rows that are larger
_ENCODE: Callable[[object], str] = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def json_lines(table: pa.Table) -> bytes:
    """Return the rows of a table as lines, each an object with all columns."""
    rows = min(ROWS_AT_ONCE, BYTES_AT_ONCE * len(table) // max(1, table.nbytes))
    return b"".join(map(_lines, table.to_batches(max(1, rows))))


def _lines(batch: pa.RecordBatch) -> bytes:
    names, columns = batch.schema.names, [_as_json(column).to_pylist() for column in batch.columns]
    return "".join(f"{_ENCODE(dict(zip(names, row, strict=True)))}\n" for row in zip(*columns, strict=True)).encode()


def json_schema(schema: pa.Schema) -> pa.Schema:
    """Return the types that a reader of the lines may give to the columns."""
    return pa.schema([(field.name, _as_json(pa.array([], field.type)).type) for field in schema])


def _as_json(array: pa.Array) -> pa.Array:
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _as_json(array.storage)
    if pa.types.is_dictionary(kind):
        return _as_json(array.dictionary_decode())
    if pa.types.is_map(kind):
        return _as_json(array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))))
    if pa.types.is_struct(kind):
        inner = [_as_json(one) for one in array.flatten()]
        return pa.StructArray.from_arrays(inner, [field.name for field in kind], mask=array.is_null())
    if pa.types.is_nested(kind):
        return _list_as_json(array if pa.types.is_list(kind) else array.cast(pa.list_(_no_null(kind.value_type))))
    if pa.types.is_floating(kind):
        number = array.cast(pa.float32()) if kind == pa.float16() else array
        is_number = pc.is_finite(number)
        number = number if kind == pa.float64() else number.cast(pa.string()).cast(pa.float64())
        return pc.if_else(is_number, number, pa.scalar(None, pa.float64()))
    if pa.types.is_duration(kind):
        return array.cast(pa.int64())
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return array.cast(pa.timestamp(kind.unit, "UTC")).cast(pa.string())
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return array.cast(pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.array([value and base64.b64encode(value).decode() for value in array.to_pylist()], pa.string())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _utf8(array)
    return array


def _list_as_json(array: pa.ListArray) -> pa.ListArray:
    """`values` are those of the whole array that this one may be a slice of, and `offsets` are places in them."""
    offsets = array.offsets.to_numpy()
    values = _as_json(array.values[offsets[0] : offsets[-1]])
    own = pa.array(offsets - offsets[0])  # a copy: a mask beside offsets that are a slice is not supported
    return pa.ListArray.from_arrays(own, values.cast(_no_null(values.type)), mask=array.is_null())


def _no_null(kind: pa.DataType) -> pa.DataType:
    """Return the type of values in a list: Arrow's casts and its reader of JSON lose nulls in lists of nothing else."""
    return pa.string() if pa.types.is_null(kind) else kind


def _utf8(array: pa.Array) -> pa.Array:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        values = array.cast(pa.large_binary()).to_pylist()
        return pa.array([value and value.decode(errors="replace") for value in values], pa.string())
    return array
