"""A unit on its way through Ray: one row of binary columns. It knows no storage, no task and no model.

A unit that fails goes on as a Work without rows that says why: later stages pass it, and the driver counts it.

Each table travels as Arrow IPC bytes in one cell. Ray may cut and merge blocks as it likes, but it can neither split a
cell nor try to unify the schemas of two units, so unlike shards and null columns cannot disturb each other.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from batchloom.pipelines.errors import JobError, failing_as
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.selection.mask import Mask

TABLES = ("rows", "notes", "requests", "results")

Made = TypeVar("Made")


@dataclass(frozen=True)
class Work:
    """A unit and its tables so far."""

    unit: Unit
    rows: pa.Table = field(default_factory=lambda: pa.table({}))
    """One row per input row that is answered: the columns that the task reads, and from tokenization on the row ledger
    alone."""
    notes: pa.Table | None = None
    """What the task needs again to finish the rows."""
    requests: pa.Table | None = None
    """What the model is asked, in the order of buckets: REQUEST_SCHEMA of pipelines/tasks/base.py, `bucket` (int32)."""
    results: pa.Table | None = None
    """What the model answered; see pipelines/replicas/results.py RESULT_SCHEMA."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Of the unit's shards, by name, where the unit is a whole part, which is written at once."""
    measures: dict[str, float] = field(default_factory=dict)
    """Figures of this run (seconds, padded tokens) that the driver sums up; they change no answer."""
    failure: str | None = None
    """Why the unit could not be read, computed or written."""

    def with_results(self, results: pa.Table, measures: Mapping[str, float]) -> "Work":
        """Return the unit with results in place of its requests."""
        return replace(self, requests=None, results=results).measured(measures)

    def measured(self, measures: Mapping[str, float]) -> "Work":
        """Return the unit with more measures."""
        return replace(self, measures={**self.measures, **measures})

    def failed(self, reason: str) -> "Work":
        """Return the unit as one that failed: without rows, and with the reason."""
        return Work(unit=self.unit, measures=self.measures, failure=reason)

    def attempt(self, what: str, stage: Callable[["Work"], Made]) -> "Made | Work":
        """Return what `stage` makes of the unit, or the failed unit where it raises. One that failed before is passed.

        Raises: PipelineError, ModelError: other than a JobError they concern the whole job.
        """
        if self.failure is not None:
            return self
        try:
            with failing_as(what):
                return stage(self)
        except JobError as error:
            return self.failed(str(error))

    def to_batch(self) -> pa.Table:
        """Return the one-row table that Ray carries."""
        columns: dict[str, pa.Array] = {
            "unit": pa.array([json.dumps([asdict(self.unit), list(map(asdict, self.sources.values()))])]),
            "measures": pa.array([json.dumps(self.measures)]),
            "failure": pa.array([self.failure], pa.string()),
        }
        for name in TABLES:
            table = getattr(self, name)
            columns[name] = pa.nulls(1, pa.large_binary()) if table is None else _cell(_to_bytes(table))
        return pa.table(columns)

    @staticmethod
    def from_batch(batch: pa.Table) -> "Work":
        """Read what `to_batch` made."""
        assert batch.num_rows == 1, f"a batch must hold one unit, not {batch.num_rows}"
        tables = {name: _from_bytes(batch[name][0].as_buffer()) for name in TABLES}
        assert tables["rows"] is not None
        unit, sources = json.loads(batch["unit"][0].as_py())
        return Work(
            unit=_unit(unit),
            sources={values["name"]: Source.from_json(values) for values in sources},
            measures=json.loads(batch["measures"][0].as_py()),
            rows=tables["rows"],
            notes=tables["notes"],
            requests=tables["requests"],
            results=tables["results"],
            failure=batch["failure"][0].as_py(),
        )


def _unit(values: dict[str, Any]) -> Unit:
    spans = tuple(Span(**span) for span in values["spans"])
    ranges = tuple((start, stop) for start, stop in values["ranges"])
    chosen = None if values["chosen"] is None else Mask(**values["chosen"])
    return Unit(values["part"], ranges, spans, values["is_whole"], chosen)


def _cell(content: pa.Buffer) -> pa.Array:
    """Wrap the buffer as one binary cell, without a copy."""
    offsets = pa.py_buffer(np.array([0, content.size], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content])


def _to_bytes(table: pa.Table) -> pa.Buffer:
    counting = pa.MockOutputStream()
    _write(table, counting)
    content = pa.allocate_buffer(counting.size())  # a stream that grows would hold it twice
    _write(table, pa.FixedSizeBufferWriter(content))
    return content


def _write(table: pa.Table, sink: pa.NativeFile) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _from_bytes(buffer: pa.Buffer | None) -> pa.Table | None:
    return None if buffer is None else pa.ipc.open_stream(buffer).read_all()
