"""Tokenize asks the task for a unit's requests and lays them into buckets: the batches that the replica computes.

It runs on CPU workers, before any model.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom import models
from batchloom.models.single_pass.buckets import best_batch_tokens, cut_into_buckets
from batchloom.pipelines.columns.texts import as_text, readable
from batchloom.pipelines.errors import RowError
from batchloom.pipelines.fields import ERROR_FIELD, ERROR_TYPE, LEDGER_INPUT
from batchloom.pipelines.stages.work import Work
from batchloom.pipelines.tasks.base import TARGET_LENGTHS, Prepared, Task
from batchloom.pipelines.telemetry.measures import STAGES, Stopwatch

# For each row, the number of its answer: rows that say the same share one. No column of an input has this name.
ANSWER_OF = "batchloom:answer_of"


@cache
def tokenizer_of(model: "models.PinnedModel") -> "models.Tokenizer":
    """Return the checkpoint's tokenizer, one per process: Ray's workers are reused from unit to unit and job to job.

    Raises: ModelError where its files are not those that the job was planned with.
    """
    return models.load_tokenizer(model)


@dataclass(frozen=True)
class Tokenize:
    """Callable that Ray maps over units: rows in; their ledger, and requests, out."""

    task: Task
    model: "models.PinnedModel"
    max_batch_tokens: int
    """Tokens of a bucket at most; see `bucket_tokens`."""
    compute_once: bool
    """Ask once for rows that say the same; each of them gets the answer."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        watch = Stopwatch()
        with watch.running():
            work = Work.from_batch(batch)
            prepared = work.attempt(
                f"Tokenizing {work.unit.stem}", lambda read: self.prepare(read, tokenizer_of(self.model))
            )
        return prepared.measured({STAGES["tokenize"]: watch.seconds}).to_batch()

    def prepare(self, work: Work, tokenizer: "models.Tokenizer") -> Work:
        """Replace the rows by the row ledger, and add the requests in the order of buckets."""
        rows = work.rows
        columns, unreadable = [], dict[int, dict[str, str]]()
        for name in self.task.input_columns():
            column, bad = readable(as_text(rows[name]))
            columns.append(column)
            unreadable |= dict.fromkeys(bad, _not_utf8(name))
        distinct, answer_of = _distinct(columns) if self.compute_once else (np.arange(rows.num_rows),) * 2
        if len(distinct) < rows.num_rows:
            columns = [column.take(pa.array(distinct)) for column in columns]
        prepared = self.task.prepare(columns, tokenizer)
        ledger = {ANSWER_OF: pa.array(answer_of, pa.int32())}
        for name in LEDGER_INPUT:
            ledger[name] = pa.array(getattr(prepared, name)[answer_of], pa.int32())
        before = [error or unreadable.get(row) for row, error in enumerate(rows["error"].to_pylist())]
        errors = _first_error(before, answer_of.tolist(), prepared)
        return replace(
            work,
            rows=pa.table(ledger).append_column(ERROR_FIELD, pa.array(errors, ERROR_TYPE)),
            notes=prepared.notes,
            requests=in_buckets(prepared.requests, self.max_batch_tokens),
        )


def in_buckets(requests: pa.Table, max_batch_tokens: int) -> pa.Table:
    """Return the requests in the order of their buckets, whose numbers are in the new column `bucket`.

    Requests with targets are ordered by their sources, so that those with one source stand together.
    """
    lengths = pc.list_value_length(requests["token_ids"]).to_pylist()
    of_sources = None
    if TARGET_LENGTHS.name in requests.column_names:
        targets = requests[TARGET_LENGTHS.name].to_pylist()
        of_sources = [length - sum(own) for length, own in zip(lengths, targets, strict=True)]
    order: list[int] = []
    buckets: list[int] = []
    for number, members in enumerate(cut_into_buckets(lengths, max_batch_tokens, of_sources)):
        order += members
        buckets += [number] * len(members)
    return requests.take(pa.array(order, pa.int64())).append_column("bucket", pa.array(buckets, pa.int32()))


def bucket_tokens(task: Task, max_batch_tokens: int, device: str) -> int:
    """Return the tokens of a bucket: all that the job allows for an engine, for single passes what suits the device."""
    return max_batch_tokens if task.generation else min(max_batch_tokens, best_batch_tokens(device))


def _not_utf8(column: str) -> dict[str, str]:
    return vars(RowError("prepare", "not_utf8", f"column {column!r} holds bytes that are no UTF-8 in this row"))


def _distinct(columns: Sequence[pa.ChunkedArray]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return (the first row of each distinct text [D], for each row the index of its text among these [rows])."""
    keys = zip(*(_keys(column) for column in columns), strict=True)
    number_of: dict[Hashable, int] = {}
    answer_of = np.array([number_of.setdefault(key, len(number_of)) for key in keys], dtype=np.int64)
    _, distinct = np.unique(answer_of, return_index=True)
    return distinct, answer_of


def _keys(column: pa.ChunkedArray) -> Sequence[Hashable]:
    """Return what is equal where rows are: of texts numbers, so that no text is held twice."""
    if pa.types.is_list(column.type):
        return [None if own is None else tuple(own) for own in column.to_pylist()]
    keys: list[Hashable] = pc.dictionary_encode(column).combine_chunks().indices.to_pylist()
    return keys


def _first_error(
    read: list[dict[str, str] | None], answer_of: list[int], prepared: Prepared
) -> list[dict[str, str] | None]:
    """Return each row's error. One from reading wins: the null text that it left would be refused as well."""
    prepare = {row: vars(error) for row, error in prepared.errors.items()}
    return [error or prepare.get(answer) for error, answer in zip(read, answer_of, strict=True)]
