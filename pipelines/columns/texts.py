"""Which columns are texts, and as which texts a task gets them. It knows no task."""

import numpy as np
import pyarrow as pa

from batchloom.pipelines.arrow_functions import pc

CONTENT = "content"  # of a turn in a chat: {"role": "user", "content": "Hello"}


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether values are bytes that may be UTF-8: Impala and Hive write texts without saying that they are."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_text(kind: pa.DataType) -> bool:
    """Return whether values are texts, or bytes that may be."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_bytes(kind))


def is_list(kind: pa.DataType) -> bool:
    """Return whether values are lists: polars writes large ones, and arrays of one size."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_chat(kind: pa.DataType) -> bool:
    """Return whether values are lists of turns, each with a role and a content."""
    if not is_list(kind) or not pa.types.is_struct(kind.value_type):
        return False
    place = kind.value_type.get_field_index(CONTENT)
    return place >= 0 and is_text(kind.value_type.field(place).type)


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the column as plain texts, or lists of them, whatever type the file stores. They may not be UTF-8."""
    kind = column.type
    if is_chat(kind):
        turns = [row and [turn and turn[CONTENT] for turn in row] for row in column.to_pylist()]
        content = kind.value_type.field(CONTENT).type
        return as_text(pa.chunked_array([pa.array(turns, pa.list_(content))]))
    is_unchecked = is_bytes(kind.value_type if is_list(kind) else kind)
    return column.cast(pa.list_(pa.string()) if is_list(kind) else pa.string(), safe=not is_unchecked)


def readable(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[int]]:
    """Return (the column with null where its bytes are not UTF-8, those rows): a file's string type is no proof."""
    if _is_utf8(column):
        return column, []
    is_bad = [not _is_utf8(column.take(pa.array([row]))) for row in range(len(column))]
    return pc.if_else(pa.array(is_bad), pa.scalar(None, column.type), column), np.flatnonzero(is_bad).tolist()


def _is_utf8(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
