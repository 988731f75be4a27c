"""Counts the answers of a unit that are degenerate: empty, copied, repeating, truncated. It knows no model.

They are answers, not errors, and one does no harm. Many are the sign of a wrong checkpoint, tokenizer or option.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom.pipelines.counts import DEGENERATE_KINDS
from batchloom.pipelines.replicas.results import Flags
from batchloom.pipelines.tasks.base import Ints, Task

if TYPE_CHECKING:
    from batchloom.models import Tokenizer

# An answer repeats where the same 1 to 32 tokens stand four times in a row at its end, and these are eight tokens or
# more and half of the answer or more.
LONGEST_PERIOD, FEWEST_REPEATS, FEWEST_TOKENS = 32, 4, 8


def degenerate(
    results: pa.Table, answer_of: pa.Array, part: pa.Table, task: Task, tokenizer: "Tokenizer"
) -> dict[str, int]:
    """Return how many rows of a generating task's part are degenerate, by kind; of several answers, by the first.

    A row is `empty`, `copied` or `repeating`, the first of these that holds; `truncated` is counted beside them.
    `results`: of the rows that are answered. A row with several pieces is what one of them is. What an answer was made
    to begin with does not count, though a copy may begin there (replicas/copies.py).
    """
    number_of = answer_of.to_numpy()
    first = results.filter(pc.equal(results["sample"], 0))
    answers = first["row"].to_numpy()
    tokens = first["token_ids"].combine_chunks()
    is_answered = part["error"].is_null().to_numpy()

    def of_rows(is_found: Flags) -> Flags:
        holds = np.zeros(int(number_of.max(initial=-1)) + 1, dtype=bool)
        holds[answers[is_found]] = True
        return np.asarray(holds[number_of] & is_answered)

    is_empty = _is_blank(part[task.output_fields()[0].name]) & is_answered | of_rows(_adds_nothing(first, tokenizer))
    is_copy = of_rows(pc.fill_null(first["is_copy"], False).to_numpy().astype(bool)) & ~is_empty
    is_repeating = of_rows(repeats(tokens, _ids(task.generation.get("eos_token_id")))) & ~is_empty & ~is_copy
    is_truncated = of_rows(_is_truncated(first, task))
    flags = zip(DEGENERATE_KINDS, (is_empty, is_copy, is_repeating, is_truncated), strict=True)
    return {kind: int(holds.sum()) for kind, holds in flags}


def repeats(tokens: pa.ListArray, ends: Sequence[int]) -> Flags:
    """Return which lists of tokens repeat themselves at their end; `ends`: tokens that do not count there.

    All lists are compared with themselves at once, one period after the other: 32 passes over 1,024 lists of 128 tokens
    take milliseconds.
    """
    lengths, starts = _lengths_without(tokens, ends)
    longest = int(lengths.max(initial=0))
    back_T = np.arange(1, longest + 1)
    values = tokens.values.to_numpy() if longest else np.zeros(1, dtype=np.int32)
    # Column t: the t-th token from the end. Before the beginning stands -1, of which no comparison is counted.
    last_RT = np.where(back_T <= lengths[:, None], values[np.maximum((starts + lengths)[:, None] - back_T, 0)], -1)
    repeats_R = np.zeros(len(tokens), dtype=bool)
    for period in range(1, min(LONGEST_PERIOD, longest // FEWEST_REPEATS) + 1):
        is_equal_RT = (last_RT[:, period:] == last_RT[:, :-period]) & (last_RT[:, period:] >= 0)
        run_R = np.where(is_equal_RT.all(1), is_equal_RT.shape[1], is_equal_RT.argmin(1)) + period
        repeats_R |= (run_R >= max(FEWEST_REPEATS * period, FEWEST_TOKENS)) & (2 * run_R >= lengths)
    return repeats_R


def _lengths_without(tokens: pa.ListArray, ends: Sequence[int]) -> tuple[Ints, Ints]:
    """Return each list's length without the tokens `ends` at its end, and where it starts among all values."""
    offsets = tokens.offsets.to_numpy()
    starts, stops = offsets[:-1].copy(), offsets[1:].copy()
    is_end = np.isin(tokens.values.to_numpy(), ends)
    while (ending := (stops > starts) & np.append(is_end, False)[stops - 1]).any():
        stops[ending] -= 1
    return stops - starts, starts


def _adds_nothing(first: pa.Table, tokenizer: "Tokenizer") -> Flags:
    """Return which answers of rows with a prefix say nothing behind it; of a row in pieces, none of them does."""
    rows, has_prefix = first["row"].to_numpy(), first["answer_prefix"].is_valid().to_numpy()
    prefixed = np.isin(rows, rows[has_prefix])
    said = tokenizer.decode_batch(first.filter(prefixed)["token_ids"].to_pylist()) if prefixed.any() else []
    speaking = rows[prefixed][[bool(text.strip()) for text in said]]
    return np.asarray(prefixed & ~np.isin(rows, speaking))


def _is_truncated(first: pa.Table, task: Task) -> Flags:
    """Return which answers ended by their length; one with a forced end has the finish reason of an end token."""
    is_long = pc.fill_null(pc.equal(first["finish_reason"], "length"), False).to_numpy().astype(bool)
    options = task.generation
    most = options.get("max_new_tokens")
    lengths = pc.list_value_length(first["token_ids"]).to_numpy()
    if most is None and task.architecture.endswith("ForConditionalGeneration"):
        most = options["max_length"] - 1  # which counts the start token, and what the answer begins with
        lengths = lengths + pc.fill_null(pc.list_value_length(first["answer_prefix"]), 0).to_numpy()
    if options.get("forced_eos_token_id") in (None, []) or most is None:
        return np.asarray(is_long)
    return np.asarray(is_long | (lengths >= most))


def _is_blank(texts: pa.ChunkedArray) -> Flags:
    """Return which texts have nothing but white space; of lists, the first text counts; of fills, their sequence."""
    if pa.types.is_list(texts.type):
        texts = pa.array([own[0] if own else None for own in texts.to_pylist()], texts.type.value_type)
    if pa.types.is_struct(texts.type):
        texts = pc.struct_field(texts, "sequence")
    return np.asarray(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), False).to_numpy(zero_copy_only=False))


def _ids(ids: Any) -> Sequence[int]:
    return () if ids is None else ids if isinstance(ids, Sequence) else (ids,)
