"""Encode a column of texts to requests; shared by tasks. It knows no task and no model."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom.pipelines.errors import RowError
from batchloom.pipelines.tasks.base import REQUEST_SCHEMA, Ints, Prepared

if TYPE_CHECKING:
    from batchloom.models import Tokenizer


def prepare_texts(
    texts: pa.ChunkedArray,
    column: str,
    tokenizer: "Tokenizer",
    *,
    prefix: str = "",
    max_tokens: int | None,
    truncate: bool = False,
    advice: str = "Shorten or split it.",
) -> Prepared:
    """Return one request per text. One longer than `max_tokens`, special tokens included, is truncated or an error."""
    errors = unanswerable(texts, column)
    rows = np.setdiff1d(np.arange(len(texts)), list(errors)).astype(np.int32)
    asked = texts.take(pa.array(rows)).to_pylist()
    ids, offsets = tokenizer.encode_flat([prefix + text for text in asked])
    lengths = np.diff(offsets)
    limit = max_tokens or int(lengths.max(initial=0))
    num_cut = np.maximum(lengths - limit, 0)
    is_kept = np.ones(len(rows), dtype=bool)
    if not truncate:
        errors |= {int(rows[i]): too_long(int(lengths[i]), limit, advice) for i in np.flatnonzero(num_cut)}
        is_kept = num_cut == 0
    for i in np.flatnonzero(lengths == 0):
        errors[int(rows[i])] = no_tokens(column)
        is_kept[i] = False
    token_ids = cut_tokens(ids, offsets, np.minimum(lengths, limit) * is_kept, tokenizer.num_special_tokens() > 0)
    num_input, num_truncated = np.zeros((2, len(texts)), dtype=np.int32)
    num_input[rows] = np.minimum(lengths, limit) * is_kept
    num_truncated[rows] = num_cut * is_kept
    columns = [pa.array(rows, pa.int32()), pa.array(np.zeros_like(rows), pa.int32()), token_ids]
    requests = pa.table(columns, schema=REQUEST_SCHEMA).filter(pa.array(is_kept))
    return Prepared(requests, num_input, num_truncated, errors)


def token_arrays(texts: Sequence[str], tokenizer: "Tokenizer", add_special_tokens: bool = True) -> list[Ints]:
    """Return the token ids of each text, which lie in one array."""
    ids, offsets = tokenizer.encode_flat(texts, add_special_tokens=add_special_tokens)
    return [ids[start:stop] for start, stop in pairwise(offsets.tolist())]


def unanswerable(texts: pa.ChunkedArray, column: str) -> dict[int, RowError]:
    """Return the error of each row whose text is null or only white space."""
    null = pc.is_null(texts)
    blank = pc.fill_null(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), False)
    errors = {
        int(row): RowError("prepare", "null_text", f"column {column!r} is null in this row")
        for row in np.flatnonzero(null.to_numpy())
    }
    return errors | {
        int(row): RowError("prepare", "empty_text", f"column {column!r} holds only white space in this row")
        for row in np.flatnonzero(blank.to_numpy())
    }


def unanswerable_words(texts: pa.ChunkedArray, column: str) -> dict[int, RowError]:
    """Return the error of each row whose list of words is null, has a null, or no word but white space."""
    errors = {}
    for row, words in enumerate(texts.to_pylist()):
        if words is None:
            errors[row] = RowError("prepare", "null_text", f"column {column!r} is null in this row")
        elif None in words:
            place = words.index(None)
            errors[row] = RowError("prepare", "null_text", f"word {place} of column {column!r} is null in this row")
        elif not any(word.strip() for word in words):
            errors[row] = RowError("prepare", "empty_text", f"column {column!r} has no word in this row")
    return errors


def too_long(num_tokens: int, limit: int, advice: str) -> RowError:
    return RowError("prepare", "too_long", f"{num_tokens} tokens, and the model takes {limit}. {advice}")


def no_tokens(column: str) -> RowError:
    return RowError("prepare", "no_tokens", f"the tokenizer makes no token of column {column!r} in this row")


def cut_tokens(ids: Ints, offsets: Ints, num_kept: Ints, keeps_last: bool) -> pa.ListArray:
    """Truncate lists to `num_kept` tokens each; with `keeps_last`, the closing special token is kept.

    [<s> a b c d </s>] at 4 is [<s> a b </s>], as transformers truncates.
    """
    starts, lengths = offsets[:-1], np.diff(offsets)
    ends = np.concatenate([[0], np.cumsum(num_kept)]).astype(np.int32)
    positions = np.arange(ends[-1]) - np.repeat(ends[:-1] - starts, num_kept)
    values = ids[positions]
    cut = (num_kept < lengths) & (num_kept > 0) & keeps_last
    values[ends[1:][cut] - 1] = ids[offsets[1:][cut] - 1]
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values, pa.int32()))
