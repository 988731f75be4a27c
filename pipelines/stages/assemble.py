"""Assemble makes a part of answers and of the columns that are kept, which are read from the input only now.

Kept columns so never travel through tokenization and replicas, and where another choice of them is wanted, parts are
assembled anew from the answers that they hold. A part's bytes depend on its rows, the fingerprint, the layout and the
answers alone (no time, no host), so a repeated write replaces equal bytes with equal bytes.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom.pipelines.counts import Counts, PartRecord
from batchloom.pipelines.errors import JobError, failing_as
from batchloom.pipelines.fields import ERROR_FIELD
from batchloom.pipelines.ledger.answers import Saved
from batchloom.pipelines.ledger.parts import TOKEN_COUNTS, counts_of, footer_for, read_part
from batchloom.pipelines.ledger.sealed import Sealed, SealedWriter
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.planning.spans import outside, within
from batchloom.pipelines.planning.units import Part
from batchloom.pipelines.stages.reader import Reader
from batchloom.pipelines.storage import Store

ROWS_AT_ONCE = 1024  # that are read
GROUP_ROWS, GROUP_BYTES = 1 << 14, 1 << 26  # of a row group of a part: written when it has as many of either


@dataclass(frozen=True)
class Order:
    """A part to assemble, and where its answers are. Every row of it is in one of these places."""

    part: Part
    sources: Mapping[str, Source]
    """Of its shards, by name."""
    saved: Sequence[Saved]
    """Files with answers. They are removed when the part is written."""
    earlier: str | None = None
    """The name of the part as it is, which gives all other rows."""


@dataclass(frozen=True)
class Assemble:
    """Makes parts and writes them."""

    store: Store
    reader: Reader
    """Of the columns that are kept."""
    answers: pa.Schema
    """The task's columns and the ledger."""
    fingerprint: str
    layout: str
    version: str
    """Of batchloom."""

    def __call__(self, order: Order) -> PartRecord:
        """Assemble a part from files, and remove those that nobody needs any more.

        Raises: JobError where answers are missing, the input has changed, or a store was in trouble for too long.
        """
        name = order.part.name(self.fingerprint)
        with failing_as(f"Assembling {name}"):
            try:
                answers, degenerate = self._gathered(order)
            except FileNotFoundError as error:
                return self._written_by_another(name, error)
            record = self.put(order.part, order.sources, answers, degenerate)
            self.store.discard([saved.name for saved in order.saved])
            return record

    def put(
        self, part: Part, sources: Mapping[str, Source], answers: pa.Table, degenerate: Mapping[str, int]
    ) -> PartRecord:
        """Write a part with these answers, one for each of its rows, and return its record. Raises: as `__call__`."""
        name = part.name(self.fingerprint)
        writer = SealedWriter(self._schema)
        counts: Counter[str] = Counter()
        kinds: Counter[str] = Counter()
        for table in _grouped(self._rows(part, sources, answers)):
            counted = counts_of(table)
            kinds.update(counted.pop("errors_by_kind"))
            counts.update(counted)
            writer.write(table)
        account: dict[str, Any] = {
            **counts,
            "errors_by_kind": dict(sorted(kinds.items())),
            "degenerate": dict(degenerate),
        }
        content = writer.seal(footer_for(part.spans, account, self.fingerprint, self.layout, self.version))
        stored = self.store.put(name, content)
        return PartRecord(
            part=name,
            spans=part.spans,
            layout=self.layout,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            version=stored.version,
            **account,
        )

    def _rows(self, part: Part, sources: Mapping[str, Source], answers: pa.Table) -> Iterator[pa.Table]:
        """Yield the part's rows, some at a time. A row whose kept columns are damaged is an error row."""
        starts = range(0, part.num_rows, ROWS_AT_ONCE)
        ranges = [(start, min(start + ROWS_AT_ONCE, part.num_rows)) for start in starts]
        groups = [tuple(within(part.spans, [own])) for own in ranges]
        for (start, stop), kept in zip(ranges, self.reader.tables(sources, groups), strict=True):
            if isinstance(kept, JobError):
                raise kept
            own = _with_errors(answers.slice(start, stop - start), kept["error"])
            yield pa.table([*kept.drop_columns(["error"]).columns, *own.columns], self._schema)

    @property
    def _schema(self) -> pa.Schema:
        return pa.schema([*self.reader.schema, *self.answers])

    def _gathered(self, order: Order) -> tuple[pa.Table, dict[str, int]]:
        """Return the answers in the order of rows, and how many are degenerate. Raises: FileNotFoundError; JobError."""
        tables, rows, degenerate = [self.answers.empty_table()], [], Counter[str]()
        for saved in order.saved:
            table, counts = self._read(saved)
            tables.append(table.cast(self.answers))
            rows += [np.arange(*own) for own in saved.ranges]
            degenerate.update(counts.degenerate)
        if order.earlier is not None:
            content = self.store.read(order.earlier)
            try:
                degenerate.update(read_part(order.earlier, content).record.degenerate)
            except ValueError as error:
                raise JobError(f"{order.earlier}: {error}. The same command computes it again.") from error
            there = Sealed.of(content).table().select(self.answers.names)
            kept = outside(order.part.num_rows, [own for saved in order.saved for own in saved.ranges])
            tables += [there.slice(start, stop - start).cast(self.answers) for start, stop in kept]
            rows += [np.arange(*own) for own in kept]
        answers, place = pa.concat_tables(tables), np.concatenate([np.arange(0), *rows])
        if not np.array_equal(np.sort(place), np.arange(order.part.num_rows)):
            raise JobError(f"{len(place)} answers are there for its {order.part.num_rows} rows")
        if (place[1:] < place[:-1]).any():
            answers = answers.take(pa.array(np.argsort(place)))
        return answers, dict(degenerate)

    def _read(self, saved: Saved) -> tuple[pa.Table, Counts]:
        try:
            return saved.read(self.store)
        except ValueError as error:
            self.store.remove([saved.name])
            raise JobError(f"{saved.name}: {error}. It was removed, and the same command computes it again.") from error

    def _written_by_another(self, name: str, missing: FileNotFoundError) -> PartRecord:
        """Return the record of a part that another run of the job has assembled of the same answers."""
        try:
            record = read_part(name, self.store.read(name)).record
        except (FileNotFoundError, ValueError):
            raise JobError(
                f"{missing} is gone, and with it answers. The same command computes them again."
            ) from missing
        if record.layout != self.layout:
            raise JobError(f"{missing} is gone, and {name} is of another layout: another job writes here.") from missing
        return replace(record, version=self.store.stat(name).version)


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the tables joined to row groups."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= GROUP_ROWS or sum(one.nbytes for one in held) >= GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _with_errors(answers: pa.Table, damage: pa.ChunkedArray) -> pa.Table:
    """Return the answers with an error, and no answer, in rows whose kept columns are damaged."""
    if damage.null_count == len(damage):
        return answers
    is_damaged = pc.is_valid(damage)
    rows = pc.if_else(is_damaged, pa.scalar(None, pa.int64()), pa.array(np.arange(len(answers))))
    masked = answers.take(rows)
    both = zip(answers["error"].to_pylist(), damage.to_pylist(), strict=True)
    errors = pa.array([found or error for error, found in both], ERROR_FIELD.type)
    counts = {name: pc.fill_null(masked[name], 0) for name in TOKEN_COUNTS}
    columns = [errors if name == "error" else counts.get(name, masked[name]) for name in answers.column_names]
    return pa.table(columns, schema=answers.schema)
