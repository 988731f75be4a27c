"""Results: answers to requests as a table, one row for each sample of each request. It knows no model and no task."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom.pipelines.errors import RowError
from batchloom.pipelines.fields import ANSWER_PREFIX, ERROR_FIELD

Flags = np.ndarray[Any, np.dtype[np.bool_]]

RESULT_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int32()),
        pa.field("piece", pa.int32()),
        pa.field("sample", pa.int32()),
        pa.field("token_ids", pa.list_(pa.int32())),
        ANSWER_PREFIX,  # of a generated answer: what it begins with and `token_ids` does not repeat
        pa.field("score", pa.float64()),
        pa.field("finish_reason", pa.string()),
        pa.field("is_copy", pa.bool_()),  # of a generated answer: it says what its prompt says
        # Of a single pass: logits, probabilities, an embedding; of a generated answer its tokens' log-probabilities,
        # where the task asks for them. Null: of a scored token of probability 0.
        pa.field("values", pa.list_(pa.float32())),
        pa.field("indices", pa.list_(pa.int32())),  # of a single pass: what the values belong to
        ERROR_FIELD,
    ]
)


def result_table(row: Any, piece: Any, **columns: Any) -> pa.Table:
    """Return a table of RESULT_SCHEMA, one sample a request, null where no column is given."""
    given = {"row": row, "piece": piece, "sample": [0] * len(row), **columns}
    values = [given.get(field.name, pa.nulls(len(row), field.type)) for field in RESULT_SCHEMA]
    return pa.table(values, schema=RESULT_SCHEMA)


def in_order(results: pa.Table) -> pa.Table:
    """Return results in the order of rows, pieces and samples, which buckets and rounds have mixed."""
    return results.sort_by([(name, "ascending") for name in ("row", "piece", "sample")])


def not_finite(column: pa.Array | pa.ChunkedArray) -> Flags:
    """Return which values of a column are NaN or infinite, or hold one that is: lists and structs are looked into."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    is_odd = np.zeros(len(column), dtype=bool)
    kind = column.type
    if pa.types.is_floating(kind):
        return np.asarray(pc.fill_null(pc.invert(pc.is_finite(column)), False).to_numpy(zero_copy_only=False))
    if pa.types.is_list(kind):
        is_odd[pc.list_parent_indices(column).to_numpy()[not_finite(pc.list_flatten(column))]] = True
    elif pa.types.is_struct(kind):
        for values in column.flatten():  # null where the struct is
            is_odd |= not_finite(values)
    return is_odd


def too_long(token_ids: list[int], limit: int | None) -> RowError | None:
    """Return the error of a request above the limit, else None.

    Attention's cost grows with the square of the length: a whole book would stall a replica of a model that has no
    longest length.
    """
    if limit is None or len(token_ids) <= limit:
        return None
    return RowError(
        "infer",
        "too_long",
        f"{len(token_ids)} tokens in one request; engine.max_batch_tokens is {limit}. Raise it, or shorten the text.",
    )
