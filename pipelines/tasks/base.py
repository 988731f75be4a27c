"""What every task offers to the pipeline, and what tasks share. It knows Arrow; no ray, no torch, no storage."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import ConfigError, RowError

Options = TypeVar("Options")
Ints = np.ndarray[Any, np.dtype[np.int32]]

REQUEST_SCHEMA = pa.schema([pa.field("row", pa.int32()), pa.field("token_ids", pa.list_(pa.int32()))])


@dataclass(frozen=True)
class Checkpoint:
    """What a task may know of the model."""

    max_positions: int | None
    """Tokens a prompt may have; None where there is no limit."""
    prefix: str = ""
    """Text that the checkpoint's configuration puts before every input."""


@dataclass(frozen=True)
class Prepared:
    """What a task made of a unit's texts."""

    requests: pa.Table
    """REQUEST_SCHEMA: `row` is an index into the unit; a row may have several requests, or none if it has an error."""
    num_input_tokens: Ints
    """[rows]: tokens the model will see of each row."""
    num_truncated_tokens: Ints
    """[rows]: tokens that were cut off."""
    errors: Mapping[int, RowError]
    """Rows without requests, and why."""


class Task(Protocol):
    """Text in, columns out. A task is picklable: it travels to the workers."""

    def input_columns(self) -> tuple[str, ...]:
        """Columns of text the task reads, in the order that `prepare` takes them."""

    def output_fields(self) -> list[pa.Field]:
        """The task's columns, whatever the rows hold; fixed, so that parts of nulls do not differ."""

    def settings(self) -> dict[str, Any]:
        """Everything in the task that decides an answer, JSON-ready: part of the fingerprint."""

    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: Any) -> Prepared:
        """Requests for a unit's rows; a row that cannot be asked gets an error instead."""

    def finish(self, results: pa.Table, num_rows: int, tokenizer: Any) -> list[pa.Array]:
        """The values of `output_fields`, null for rows without results; `results` has RESULT_SCHEMA, no errors."""


def read_options(task: str, options: Mapping[str, Any], kind: type[Options]) -> Options:
    """`kind(**options)`, a frozen dataclass; ConfigError lists every unknown name with the nearest known one."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = [name for name in options if name not in known]
    if unknown:
        hints = {name: difflib.get_close_matches(name, known, 1) for name in unknown}
        asked = ", ".join(f"{name} (did you mean {hint[0]}?)" if hint else name for name, hint in hints.items())
        raise ConfigError(f"task_options: {task} does not know {asked}. It knows: {', '.join(known)}.")
    return kind(**options)


def prepare_texts(
    texts: pa.ChunkedArray,
    column: str,
    tokenizer: Any,
    *,
    prefix: str,
    max_tokens: int | None,
    truncate: bool,
) -> Prepared:
    """One request per text: special tokens included, at most `max_tokens` long, else cut or refused."""
    errors = unanswerable(texts, column)
    rows = np.setdiff1d(np.arange(len(texts)), list(errors)).astype(np.int32)
    asked = texts.take(pa.array(rows)).to_pylist()
    ids, offsets = tokenizer.encode_flat([prefix + text for text in asked])
    lengths = np.diff(offsets)
    limit = max_tokens or int(lengths.max(initial=0))
    num_cut = np.maximum(lengths - limit, 0)
    if num_cut.any() and not truncate:
        errors |= {int(rows[i]): too_long(int(lengths[i]), limit) for i in np.flatnonzero(num_cut)}
        kept = num_cut == 0
    else:
        kept = np.ones(len(rows), dtype=bool)
    token_ids = cut_tokens(ids, offsets, np.minimum(lengths, limit) * kept)
    num_input, num_truncated = np.zeros((2, len(texts)), dtype=np.int32)
    num_input[rows] = np.minimum(lengths, limit) * kept
    num_truncated[rows] = num_cut * kept
    requests = pa.table([pa.array(rows), token_ids], schema=REQUEST_SCHEMA).filter(pa.array(kept))
    return Prepared(requests, num_input, num_truncated, errors)


def unanswerable(texts: pa.ChunkedArray, column: str) -> dict[int, RowError]:
    """Rows whose text is null or has nothing but white space, and why they get no answer."""
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


def too_long(num_tokens: int, limit: int) -> RowError:
    return RowError(
        "prepare",
        "too_long",
        f"{num_tokens} tokens, and the model takes {limit}. "
        "Set task_options.long_documents to truncate, or split the text.",
    )


def cut_tokens(ids: Ints, offsets: Ints, num_kept: Ints) -> pa.ListArray:
    """Lists shortened to `num_kept` tokens each; the closing special token is kept in place of the last.

    [<s> a b c d </s>] at 4 is [<s> a b </s>], as transformers truncates.
    """
    starts, lengths = offsets[:-1], np.diff(offsets)
    ends = np.concatenate([[0], np.cumsum(num_kept)]).astype(np.int32)
    positions = np.arange(ends[-1]) - np.repeat(ends[:-1] - starts, num_kept)
    values = ids[positions]
    cut = (num_kept < lengths) & (num_kept > 0)
    values[ends[1:][cut] - 1] = ids[offsets[1:][cut] - 1]
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values, pa.int32()))


def first_answers(results: pa.Table) -> pa.Table:
    """The best answer of each request."""
    return results.filter(pc.equal(results["sample"], 0))
