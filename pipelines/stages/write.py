"""Write finishes a unit's columns and makes them safe: as its part, where the unit is one, else as a file of answers.

A unit whose part exists, or whose answers do, is done.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom.pipelines.counts import PartRecord, UnitRecord
from batchloom.pipelines.errors import RowError
from batchloom.pipelines.fields import ERROR_TYPE, LEDGER_FIELDS, LEDGER_INPUT
from batchloom.pipelines.ledger.answers import Saved
from batchloom.pipelines.ledger.parts import counts_of
from batchloom.pipelines.metrics import UnitFailed
from batchloom.pipelines.planning.units import Part
from batchloom.pipelines.records import from_json
from batchloom.pipelines.replicas.results import not_finite
from batchloom.pipelines.stages.assemble import Assemble, spread
from batchloom.pipelines.stages.degenerate import degenerate
from batchloom.pipelines.stages.tokenize import ANSWER_OF, tokenizer_of
from batchloom.pipelines.stages.work import Work
from batchloom.pipelines.tasks.base import Answered, Task
from batchloom.pipelines.telemetry.measures import STAGES, Stopwatch

if TYPE_CHECKING:
    from batchloom.models import PinnedModel, Tokenizer

_KINDS: Mapping[str, Any] = {kind.__name__: kind for kind in (UnitRecord, PartRecord, UnitFailed)}


@dataclass(frozen=True)
class Write:
    """Callable that Ray maps over answered units: writes the answers, returns records or the failure as JSON."""

    task: Task
    model: "PinnedModel"
    assemble: Assemble

    def __call__(self, batch: pa.Table) -> pa.Table:
        watch = Stopwatch()
        with watch.running():
            work = Work.from_batch(batch)
            unit = work.unit
            made = work.attempt(f"Writing the answers to {unit.stem} to {self.assemble.store.url}", self._write)
        if isinstance(made, Work):
            span = unit.spans[0]
            return to_outcome(UnitFailed(span.shard, span.start, unit.spans[-1].stop, str(made.failure)), made.measures)
        return to_outcome(made, {**work.measures, STAGES["write"]: watch.seconds})

    def _write(self, work: Work) -> "UnitRecord | PartRecord":
        unit, assemble = work.unit, self.assemble
        answers, degenerate = self._finish(work, tokenizer_of(self.model))
        if unit.is_whole:
            return assemble.put(Part(unit.spans), work.sources, [spread(answers, unit.chosen)], degenerate)
        counts = {**counts_of(answers), "degenerate": dict(degenerate)}
        Saved(unit.part, assemble.fingerprint, unit.ranges).write(assemble.store, answers, counts, unit.chosen)
        return UnitRecord(part=unit.part, ranges=unit.ranges, **counts)

    def finish(self, work: Work, tokenizer: "Tokenizer") -> pa.Table:
        """Return the unit's answers: the task's columns, and the ledger."""
        return self._finish(work, tokenizer)[0]

    def _finish(self, work: Work, tokenizer: "Tokenizer") -> tuple[pa.Table, dict[str, int]]:
        """Return the unit's answers, and how many of them are degenerate."""
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
        # A row that could not be read may share its nulls with one that is answered: another column's are no error.
        is_failed = pc.or_(
            pc.is_in(answer_of, pa.array(failed, pa.int32())), pc.is_valid(rows["error"]).combine_chunks()
        )
        shown = pc.if_else(is_failed, pa.scalar(None, pa.int32()), answer_of)
        columns = [answer.take(shown) for answer in answers]
        num_read, num_cut = (pc.if_else(is_failed, pa.scalar(0, pa.int32()), rows[name]) for name in LEDGER_INPUT)
        ledger = [
            num_read,
            pc.fill_null(_num_output_tokens(good, num_answers).take(shown), 0),
            num_cut,
            _finish_reasons(good, num_answers).take(shown),
            _merged_errors(rows["error"], answer_of, failed),
        ]
        table = pa.table([*columns, *ledger], schema=pa.schema([*self.task.output_fields(), *LEDGER_FIELDS]))
        return table, degenerate(good, answer_of, table, self.task, tokenizer) if self.task.generation else {}

    def _not_finite(self, answers: Sequence[pa.Array]) -> dict[int, dict[str, str]]:
        """Return the rows with a value that is NaN or infinite, and the error that each has in its place.

        Replicas find what the model gives; this holds for whatever a task computes of it.
        """
        found: dict[int, dict[str, str]] = {}
        for field, column in zip(self.task.output_fields(), answers, strict=True):
            message = f"The row's {field.name} is not finite (NaN or infinity), though what the model gave is."
            reason = self.task.why_not_finite(field.name)
            error = vars(RowError("finish", "not_finite", f"{message} {reason}".strip()))
            found = dict.fromkeys(np.flatnonzero(not_finite(column)).tolist(), error) | found  # the first column's
        return found


def to_outcome(made: UnitRecord | PartRecord | UnitFailed, measures: Mapping[str, float]) -> pa.Table:
    """Return the one-row table that ends a unit's way through Ray."""
    return pa.table({"outcome": [json.dumps([type(made).__name__, asdict(made), measures])]})


def from_outcome(outcome: str) -> tuple[UnitRecord | PartRecord | UnitFailed, dict[str, float]]:
    """Read a cell that `to_outcome` made: the unit's record or why it has none, and its measures."""
    kind, values, measures = json.loads(outcome)
    made: UnitRecord | PartRecord | UnitFailed = from_json(_KINDS[kind], values)
    return made, measures


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
