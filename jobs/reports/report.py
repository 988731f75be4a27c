"""The report on an output: rows, speed, padding, errors, lengths, samples. report_page.py draws it as HTML."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchloom.jobs.reports import wording
from batchloom.jobs.reports.figures import Figures
from batchloom.jobs.reports.view import Row, View, spread
from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.fields import LEDGER_FIELDS

MAX_PARTS = 64  # to read lengths from: enough for a distribution, and a report never reads a whole archive
MAX_BINS = 30
NUM_SAMPLE_ROWS = 12


@dataclass(frozen=True)
class Histogram:
    """How many rows have which length."""

    edges: tuple[int, ...]
    """Bin `i` counts lengths of `[edges[i], edges[i + 1])`, in tokens."""
    counts: tuple[int, ...]
    median: float
    largest: int

    @staticmethod
    def of(lengths: Sequence[int]) -> "Histogram | None":
        """Count lengths in at most about MAX_BINS bins; None if there are none."""
        if not lengths:
            return None
        largest = max(lengths)
        width = _round_width((largest + 1) / MAX_BINS)
        counts = Counter(length // width for length in lengths)
        num_bins = largest // width + 1
        return Histogram(
            edges=tuple(width * index for index in range(num_bins + 1)),
            counts=tuple(counts[index] for index in range(num_bins)),
            median=median(lengths),
            largest=largest,
        )


@dataclass(frozen=True)
class Report:
    """An output, and lengths and rows sampled from it."""

    view: View
    input_lengths: Histogram | None
    output_lengths: Histogram | None
    """Of answered rows."""
    num_rows_read: int
    """Rows of the sampled parts."""
    num_rows_truncated: int
    """Of those rows."""
    sample: list[Row]

    @staticmethod
    def of(view: View) -> "Report":
        read = _read(view, spread(view.records, MAX_PARTS))
        answered = read.filter(pc.is_null(read["error"]))
        return Report(
            view=view,
            input_lengths=Histogram.of(answered["num_input_tokens"].to_pylist()),
            output_lengths=Histogram.of(answered["num_output_tokens"].to_pylist()),
            num_rows_read=read.num_rows,
            num_rows_truncated=pc.sum(pc.greater(read["num_truncated_tokens"], 0)).as_py() or 0,
            sample=view.sample(NUM_SAMPLE_ROWS),
        )

    @property
    def figures(self) -> Figures | None:
        """Speed and padding; None until the job is finished."""
        return Figures.of(self.view.manifest) if self.view.manifest else None

    def words(self) -> dict[str, str]:
        totals = self.view.totals
        return {
            "Job": f"{self.view.job['task']}, {self.view.job['model']}",
            "State": "finished" if self.view.manifest else "not finished",
            "Result": wording.outcome(totals, self.view.errors_by_kind),
            "Tokens": f"{totals['input_tokens']:,} read, {totals['output_tokens']:,} written",
            **(self.figures.words() if self.figures else {}),
            **{name: _words(lengths) for name, lengths in self.histograms().items()},
        }

    def values(self) -> dict[str, Any]:
        return {
            "finished": self.view.manifest is not None,
            "totals": dict(self.view.totals),
            "errors_by_kind": dict(self.view.errors_by_kind),
            "degenerate": self.view.records.degenerate(),
            "timing": dict(self.view.manifest.timing) if self.view.manifest else None,
            "lengths": {name: vars(lengths) for name, lengths in self.histograms().items()},
        }

    def histograms(self) -> dict[str, Histogram]:
        """Return the histograms by title; tasks that write no tokens have none of output lengths."""
        named = {"Input lengths": self.input_lengths, "Output lengths": self.output_lengths}
        return {name: lengths for name, lengths in named.items() if lengths is not None and lengths.largest > 0}


def _read(view: View, records: Sequence[PartRecord]) -> pa.Table:
    """Read the ledger columns of these parts: token counts, finish reasons and errors."""
    schema = pa.schema(LEDGER_FIELDS)
    tables = [schema.empty_table()]
    for record in records:
        table = view.read(record.part, lambda part: part.columns(schema))
        tables += [] if table is None else [table]
    return pa.concat_tables(tables)


def _round_width(least: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that is at least `least`, for round bin edges."""
    power = 1
    while True:
        for width in (power, 2 * power, 5 * power):
            if width >= least:
                return width
        power *= 10


def _words(lengths: Histogram) -> str:
    return f"median {lengths.median:,.0f} tokens, longest {lengths.largest:,}"
