"""Encode a column of texts to requests; shared by tasks. It knows no task and no model."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchloom.models.tokenizers.tokenizer import NO_TEXT
from batchloom.pipelines.arrow_functions import pc
from batchloom.pipelines.errors import RowError
from batchloom.pipelines.tasks.base import REQUEST_SCHEMA, Ints, Prepared
from batchloom.pipelines.tasks.length import CUTS, InputLength, Truncation, too_long

if TYPE_CHECKING:
    from batchloom.models import Tokenizer


def prepare_texts(
    texts: pa.ChunkedArray,
    column: str,
    tokenizer: "Tokenizer",
    *,
    prefix: str = "",
    length: InputLength,
    room: Ints | None = None,
    advice: str = "Shorten or split it, or set task_options.truncation.",
) -> Prepared:
    """Return one request per text. One that is longer than `length` is truncated as that says, or else an error.

    `room`: tokens of each text at most, where something of its row takes some of the model's positions.
    """
    errors = unanswerable(texts, column)
    rows = np.setdiff1d(np.arange(len(texts)), list(errors)).astype(np.int32)
    asked = texts.take(pa.array(rows)).to_pylist()
    ids, offsets = tokenizer.encode_flat([prefix + text for text in asked])
    lengths = np.diff(offsets)
    around = num_around(tokenizer)
    limit = np.full_like(lengths, length.most or lengths.max(initial=0))
    if room is not None:  # where there is none for any text, that is the request's error
        limit = np.where(room[rows] > sum(around), np.minimum(limit, room[rows]), limit)
    num_cut = np.maximum(lengths - limit, 0)
    is_kept = np.ones(len(rows), dtype=bool)
    if length.truncation not in CUTS:
        errors |= {int(rows[i]): too_long(int(lengths[i]), int(limit[i]), advice) for i in np.flatnonzero(num_cut)}
        is_kept = num_cut == 0
    for i in np.flatnonzero(lengths == 0):
        errors[int(rows[i])] = no_tokens(column)
        is_kept[i] = False
    num_kept = np.minimum(lengths, limit) * is_kept
    token_ids = cut_tokens(ids, offsets, num_kept, around, length.truncation)
    num_input, num_truncated = np.zeros((2, len(texts)), dtype=np.int32)
    num_input[rows] = num_kept
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


def unanswerable_lists(
    lists: Sequence[Sequence[str | None] | None], column: str, one: str, if_empty: RowError
) -> dict[int, RowError]:
    """Return the error of each row whose list of texts is null or empty, or has one that is null or only white space.

    `one`: what the texts are, such as target; `if_empty`: the error of an empty list.
    """
    errors = {}
    for row, texts in enumerate(lists):
        if texts is None:
            errors[row] = RowError("prepare", "null_text", f"column {column!r} is null in this row")
        elif not texts:
            errors[row] = if_empty
        elif None in texts:
            message = f"{one} {texts.index(None)} of column {column!r} is null in this row"
            errors[row] = RowError("prepare", "null_text", message)
        elif (blank := next((place for place, text in enumerate(texts) if not (text or "").strip()), None)) is not None:
            message = f"{one} {blank} of column {column!r} holds only white space in this row"
            errors[row] = RowError("prepare", "empty_text", message)
    return errors


def no_tokens(column: str) -> RowError:
    return RowError("prepare", "no_tokens", f"the tokenizer makes no token of column {column!r} in this row")


def num_around(tokenizer: "Tokenizer") -> tuple[int, int]:
    """Return how many special tokens stand before a text, and behind it."""
    encoded = tokenizer.encode_offsets(["a"])[0]
    own = np.flatnonzero(encoded.sequence_ids != NO_TEXT).tolist()
    return (own[0], len(encoded) - own[-1] - 1) if own else (len(encoded), 0)


def cut_tokens(
    ids: Ints, offsets: Ints, num_kept: Ints, around: tuple[int, int], truncation: Truncation | None
) -> pa.ListArray:
    """Truncate lists to `num_kept` tokens each; the special tokens around the text stay, as in transformers.

    [<s> a b c d </s>] at 4 is [<s> a b </s>] by "right", [<s> c d </s>] by "left".
    """
    ends = np.concatenate([[0], np.cumsum(num_kept)]).astype(np.int32)
    num_left_out = np.diff(offsets) - num_kept
    before, after = around
    heads = np.full_like(num_kept, before) if truncation == "left" else np.maximum(num_kept - after, 0)
    places = np.arange(ends[-1]) - np.repeat(ends[:-1], num_kept)  # of each kept token, in what is kept of its list
    is_tail = places >= np.repeat(heads, num_kept)
    positions = places + np.repeat(offsets[:-1], num_kept) + np.repeat(num_left_out, num_kept) * is_tail
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(ids[positions], pa.int32()))
