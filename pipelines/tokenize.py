"""Tokenize asks the task for requests and lays them into buckets. It runs on CPU workers, before any model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

import models
from pipelines.bucket import cut_into_buckets
from pipelines.read import ERROR_FIELD, ERROR_TYPE
from pipelines.tasks.base import Prepared, Task
from pipelines.work import Work

LEDGER_INPUT = ("num_input_tokens", "num_truncated_tokens")


@cache
def tokenizer_of(uri: str) -> Any:
    """One tokenizer per process and checkpoint: Ray's workers are reused from unit to unit."""
    return models.load_tokenizer(uri)


@dataclass(frozen=True)
class Tokenize:
    """Callable that Ray maps over units: rows in; rows without their text, and requests, out."""

    task: Task
    model: str
    keep_columns: Sequence[str]
    max_batch_tokens: int

    def __call__(self, batch: pa.Table) -> pa.Table:
        work = Work.from_batch(batch)
        return Work(work.unit, *self.split(work.rows, tokenizer_of(self.model))).to_batch()

    def split(self, rows: pa.Table, tokenizer: Any) -> tuple[pa.Table, pa.Table]:
        """(rows, requests): kept columns with the row ledger, and requests in bucket order."""
        texts = [rows[name].cast(pa.string()) for name in self.task.input_columns()]
        prepared = self.task.prepare(texts, tokenizer)
        kept = rows.select(self.keep_columns)
        for name in LEDGER_INPUT:
            kept = kept.append_column(name, pa.array(getattr(prepared, name), pa.int32()))
        errors = _first_error(rows["error"].to_pylist(), prepared)
        return kept.append_column(ERROR_FIELD, pa.array(errors, ERROR_TYPE)), self._in_buckets(prepared.requests)

    def _in_buckets(self, requests: pa.Table) -> pa.Table:
        lengths = np.diff(requests["token_ids"].combine_chunks().offsets.to_numpy())
        order: list[int] = []
        buckets: list[int] = []
        for number, bucket in enumerate(cut_into_buckets(lengths.tolist(), self.max_batch_tokens)):
            order += bucket.members
            buckets += [number] * len(bucket.members)
        return requests.take(pa.array(order, pa.int64())).append_column("bucket", pa.array(buckets, pa.int32()))


def _first_error(read: list[dict[str, str] | None], prepared: Prepared) -> list[dict[str, str] | None]:
    """An error from reading stands: the text it left null is its consequence."""
    return [error or (vars(prepared.errors[row]) if row in prepared.errors else None) for row, error in enumerate(read)]
