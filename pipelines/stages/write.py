"""Write finishes a unit's columns and writes its part. A part that exists is the record that its unit is done.

A part's bytes depend on the unit, the fingerprint and the answers alone (no time, no host), so a repeated write
replaces equal bytes with equal bytes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom.pipelines.errors import RowError
from batchloom.pipelines.fields import ERROR_TYPE, LEDGER_FIELDS, LEDGER_INPUT
from batchloom.pipelines.ledger.parts import FOOTER_KEY, counts_of, to_parquet
from batchloom.pipelines.metrics import UnitFailed, UnitRecord
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.replicas.results import not_finite
from batchloom.pipelines.stages.degenerate import degenerate
from batchloom.pipelines.stages.retry import merged
from batchloom.pipelines.stages.tokenize import ANSWER_OF, tokenizer_of
from batchloom.pipelines.stages.work import Work
from batchloom.pipelines.storage import Store
from batchloom.pipelines.tasks.base import Answered, Task

if TYPE_CHECKING:
    from batchloom.models import PinnedModel, Tokenizer


@dataclass(frozen=True)
class Write:
    """Callable that Ray maps over answered units: writes the part, returns its record or the failure as JSON."""

    task: Task
    model: "PinnedModel"
    store: Store
    fingerprint: str
    version: str

    def __call__(self, batch: pa.Table) -> pa.Table:
        work = Work.from_batch(batch)
        unit = work.unit
        made = work.attempt(
            f"Writing {unit.part_name(self.fingerprint)} to {self.store.url}",
            lambda answered: self.put(unit, *self._finish(answered, tokenizer_of(self.model))),
        )
        if isinstance(made, Work):
            return to_outcome(UnitFailed(unit.shard, unit.start, unit.stop, str(made.failure)), made.measures)
        return to_outcome(made, work.measures)

    def finish(self, work: Work, tokenizer: "Tokenizer") -> pa.Table:
        """Return the part's table: kept columns, the task's columns, the ledger."""
        return self._finish(work, tokenizer)[0]

    def _finish(self, work: Work, tokenizer: "Tokenizer") -> tuple[pa.Table, dict[str, int]]:
        """Return the part's table, and how many of its answers are degenerate."""
        results, rows = work.results, work.rows
        assert results is not None
        answer_of = rows[ANSWER_OF].combine_chunks()
        num_answers = (pc.max(answer_of).as_py() if rows.num_rows else -1) + 1
        failed = _failures(results)
        good = _without(results, failed)
        answers = self.task.finish(Answered(good, num_answers, work.notes), tokenizer)
        if odd := self._not_finite(answers):
            failed |= odd
            good = _without(results, failed)
            answers = self.task.finish(Answered(good, num_answers, work.notes), tokenizer)
        columns = [answer.take(answer_of) for answer in answers]
        is_failed = pc.is_in(answer_of, pa.array(failed, pa.int32()))
        num_read, num_cut = (pc.if_else(is_failed, pa.scalar(0, pa.int32()), rows[name]) for name in LEDGER_INPUT)
        ledger = [
            num_read,
            _num_output_tokens(good, num_answers).take(answer_of),
            num_cut,
            _finish_reasons(good, num_answers).take(answer_of),
            _merged_errors(rows["error"], answer_of, failed),
        ]
        kept = rows.drop_columns([ANSWER_OF, *LEDGER_INPUT, "error"])
        fields = [*kept.schema, *self.task.output_fields(), *LEDGER_FIELDS]
        part = pa.table([*kept.columns, *columns, *ledger], schema=pa.schema(fields))
        counts = Counter(degenerate(good, answer_of, part, self.task)) if self.task.generation else Counter[str]()
        if work.earlier is None:
            return part, counts
        counts.update(_degenerate_before(work.earlier))  # rows that are computed again were errors, and are not in it
        return merged(work.earlier, part), counts

    def _not_finite(self, answers: Sequence[pa.Array]) -> dict[int, dict[str, str]]:
        """Return the rows with a value that is NaN or infinite, and the error that each has in its place.

        Replicas find what the model gives; this holds for whatever a task computes of it.
        """
        found: dict[int, dict[str, str]] = {}
        for field, column in zip(self.task.output_fields(), answers, strict=True):
            message = f"The row's {field.name} is not finite (NaN or infinity), though what the model gave is."
            error = vars(RowError("finish", "not_finite", message))
            found |= dict.fromkeys(np.flatnonzero(not_finite(column)).tolist(), error)
        return found

    def put(self, unit: Unit, part: pa.Table, degenerate: Mapping[str, int]) -> UnitRecord:
        """Write the part with its account in the footer, and return the record."""
        account = {
            "shard": unit.shard,
            "start": unit.start,
            "stop": unit.stop,
            **counts_of(part),
            "degenerate": dict(degenerate),
        }
        footer = {"unit": unit.id, "fingerprint": self.fingerprint, "version": self.version, "account": account}
        content = to_parquet(part, footer)
        name = unit.part_name(self.fingerprint)
        self.store.put(name, content)
        return UnitRecord(
            part=name,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            version=self.store.stat(name).version,
            **account,
        )


def to_outcome(made: UnitRecord | UnitFailed, measures: dict[str, float]) -> pa.Table:
    """Return the one-row table that ends a unit's way through Ray."""
    values = {"record" if isinstance(made, UnitRecord) else "failure": asdict(made), "measures": measures}
    return pa.table({"outcome": [json.dumps(values)]})


def from_outcome(outcome: str) -> tuple[UnitRecord | UnitFailed, dict[str, float]]:
    """Read a cell that `to_outcome` made: the unit's record or why it has none, and its measures."""
    values = json.loads(outcome)
    made = UnitRecord(**values["record"]) if "record" in values else UnitFailed(**values["failure"])
    return made, values["measures"]


def _degenerate_before(earlier: pa.Table) -> dict[str, int]:
    """Return the counts in an old part's footer, which a version before them did not write."""
    counts: dict[str, int] = json.loads(earlier.schema.metadata[FOOTER_KEY])["account"].get("degenerate", {})
    return counts


def _without(results: pa.Table, rows: Iterable[int]) -> pa.Table:
    return results.filter(pc.invert(pc.is_in(results["row"], pa.array(rows, pa.int32()))))


def _failures(results: pa.Table) -> dict[int, dict[str, str]]:
    """Return the rows of which a request failed, with its first error: a row is answered whole or not at all."""
    failed = results.filter(pc.is_valid(results["error"]))
    reasons: dict[int, dict[str, str]] = {}
    for row, error in zip(failed["row"].to_pylist(), failed["error"].to_pylist(), strict=True):
        reasons.setdefault(row, error)
    return reasons


def _merged_errors(before: pa.ChunkedArray, answer_of: pa.Array, failed: dict[int, dict[str, str]]) -> pa.Array:
    """Return each row's error; one from before the model wins."""
    errors = [error or failed.get(row) for error, row in zip(before.to_pylist(), answer_of.to_pylist(), strict=True)]
    return pa.array(errors, ERROR_TYPE)


def _num_output_tokens(answered: pa.Table, num_rows: int) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(answered["token_ids"]), 0).to_numpy()
    sums = np.bincount(answered["row"].to_numpy(), weights=lengths, minlength=num_rows)
    return pa.array(sums.astype(np.int32), pa.int32())


def _finish_reasons(answered: pa.Table, num_rows: int) -> pa.Array:
    """Return the finish reason of each row's first answer."""
    reasons: list[str | None] = [None] * num_rows
    for row, reason in zip(answered["row"].to_pylist(), answered["finish_reason"].to_pylist(), strict=True):
        reasons[row] = reasons[row] or reason
    return pa.array(reasons, pa.string())
