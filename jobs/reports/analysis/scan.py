"""A scan goes once through parts of an output, some columns of them, in bounded memory and time."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom.jobs.reports.answers.base import Answers
from batchloom.jobs.reports.answers.by_task import answers_of
from batchloom.jobs.reports.numbers import Numbers, joined
from batchloom.jobs.reports.view import View, spread
from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.ledger.part_files import PartFile
from batchloom.pipelines.ledger.register import Register

MAX_PARTS = 64  # of a large output, evenly spread: enough for shares and distributions
MAX_ROWS = 2_000_000
MAX_BYTES = 4 << 30
EXAMPLES_PER_KIND = 2  # of rows with an error


@dataclass(frozen=True)
class Place:
    """A row of an output."""

    record: PartRecord
    row: int
    """Of the part's file."""


@dataclass
class Scan:
    """What the rows that were gone through add up to."""

    answers: Answers
    num_rows: int = 0
    num_parts: int = 0
    num_rows_truncated: int = 0
    """Rows whose input was cut."""
    errors: Counter[str] = field(default_factory=Counter)
    """By kind."""
    messages: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The stage and the message of the first error of each kind."""
    places: dict[str, list[Place]] = field(default_factory=dict)
    """The first rows with an error, by its kind."""
    _input: list[Numbers] = field(default_factory=list)
    _output: list[Numbers] = field(default_factory=list)

    @staticmethod
    def of(view: View) -> "Scan":
        """Go through an output, or through parts of it that are spread evenly where it is large."""
        scan = Scan(answers_of(view.job, view.kept_columns))
        for record in _chosen(view.records):
            before = scan.num_rows
            view.read(record.part, lambda part, record=record: scan._add_part(part, record))  # type: ignore[misc]
            scan.num_parts += scan.num_rows > before
        return scan

    @property
    def input_lengths(self) -> Numbers:
        """Tokens that were read for each answered row."""
        return joined(self._input)

    @property
    def output_lengths(self) -> Numbers:
        return joined(self._output)

    def _add_part(self, part: PartFile, record: PartRecord) -> None:
        schema = pa.schema([*self.answers.schema, *LEDGER_FIELDS])
        start = 0
        for rows in part.tables(schema):
            is_answered = pc.is_null(rows["error"])
            self._add_errors(rows["error"], record, start)
            self.num_rows += rows.num_rows
            self.num_rows_truncated += pc.sum(pc.greater(rows["num_truncated_tokens"], 0)).as_py() or 0
            answered = rows.filter(is_answered)
            self._input.append(answered["num_input_tokens"].to_numpy().astype(np.int32))
            self._output.append(answered["num_output_tokens"].to_numpy().astype(np.int32))
            self.answers.add(answered)
            start += rows.num_rows

    def _add_errors(self, errors: pa.ChunkedArray, record: PartRecord, start: int) -> None:
        kinds = pc.struct_field(errors, "kind")
        found = pc.value_counts(kinds.drop_null())
        for kind, count in zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True):
            self.errors[kind] += count
            places = self.places.setdefault(kind, [])
            if len(places) < EXAMPLES_PER_KIND:
                rows = np.flatnonzero(pc.equal(kinds, kind).fill_null(False).to_numpy())
                places += [Place(record, start + int(row)) for row in rows[: EXAMPLES_PER_KIND - len(places)]]
            if kind not in self.messages:
                error = errors[int(pc.index(kinds, kind).as_py())].as_py()
                self.messages[kind] = (error["stage"], error["message"])


def _chosen(records: Register) -> list[PartRecord]:
    """Return parts that are spread evenly, as many as are read."""
    totals = records.totals()
    budgets = ((MAX_ROWS, totals["rows"]), (MAX_BYTES, totals["bytes"]))
    most = min(budget * len(records) // max(total, 1) for budget, total in budgets)
    return spread(records, min(max(most, 1), MAX_PARTS))
