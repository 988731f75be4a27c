"""Assemble makes a part of answers and of the columns that are kept, which are read from the input only now.

Kept columns so never travel through tokenization and replicas, and where another choice of them is wanted, parts are
assembled anew from the answers that they hold. A part's bytes depend on its rows, the fingerprint, the layout and the
answers alone (no time, no host), so a repeated write replaces equal bytes with equal bytes.

Memory holds the file as it grows, a row group of it, and the answers and columns of a few rows. So whoever assembles
may be killed at any point, and is tried again.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom.pipelines.config import OutputConfig
from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.errors import JobError, failing_as
from batchloom.pipelines.fields import ERROR_FIELD
from batchloom.pipelines.ledger.answers import Saved
from batchloom.pipelines.ledger.part_files import PartFile, PartWriter, seal_name
from batchloom.pipelines.ledger.parts import TOKEN_COUNTS, counts_of, footer_for
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.planning.spans import Range, outside
from batchloom.pipelines.planning.units import Part
from batchloom.pipelines.selection.mask import Flags, Mask
from batchloom.pipelines.stages.reader import Reader
from batchloom.pipelines.stores.storage import Store

CHOSEN = "batchloom:is_chosen"  # no column of an output has this name
ROWS_AT_ONCE = 1024  # that are read
GROUP_BYTES = 1 << 25  # of a row group of a part: it is written when it has as many, whatever its rows


@dataclass(frozen=True)
class Order:
    """A part to assemble, and where its answers are. Every row of it is in one of these places."""

    part: Part
    sources: Mapping[str, Source]
    """Of its shards, by name."""
    saved: Sequence[Saved]
    """Files with answers. They are removed when the part is written."""
    earlier: PartRecord | None = None
    """The part as it is, which gives all other rows."""


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
    output: OutputConfig
    """How files are written."""

    def __call__(self, order: Order) -> PartRecord:
        """Assemble a part from files, and remove those that nobody needs any more.

        Raises: JobError where answers are missing, the input has changed, or a store was in trouble for too long;
            MemoryError.
        """
        degenerate: Counter[str] = Counter()
        with failing_as(f"Assembling {self.name(order.part)}", MemoryError):
            try:
                record = self.put(order.part, order.sources, self._gathered(order, degenerate), degenerate)
            except FileNotFoundError as error:
                return self._written_by_another(order, error)
            self._remove_earlier(order, record)
            self.store.discard([saved.name for saved in order.saved])
            return record

    def name(self, part: Part) -> str:
        """Return the name of a part's file."""
        return part.name(self.fingerprint, self.output.ending, self.output.partition_by)

    def put(
        self, part: Part, sources: Mapping[str, Source], answers: Iterable[pa.Table], degenerate: Mapping[str, int]
    ) -> PartRecord:
        """Write a part with these answers, one for each of its rows and in their order, and return its record.

        `answers` as `spread` gives them: rows that are not chosen are none of the file, but of its account.
        `degenerate`: how many of them are; it is looked at when all have been taken. Raises: as `__call__`.
        """
        name = self.name(part)
        writer = PartWriter.of(self.output, self._schema)
        nothing = counts_of(self._schema.empty_table())
        kinds: Counter[str] = Counter(nothing.pop("errors_by_kind"))
        counts: Counter[str] = Counter(nothing)
        chosen: list[Flags] = []
        rows = self._rows(part, sources, answers, chosen)
        for table in _at_once(rows, self.output.row_group_rows, GROUP_BYTES):
            counted = counts_of(table)
            kinds.update(counted.pop("errors_by_kind"))
            counts.update(counted)
            writer.write(table)
            del table  # before the next is made
        account: dict[str, Any] = {
            **counts,
            "errors_by_kind": dict(sorted(kinds.items())),
            "degenerate": dict(degenerate),
        }
        own: dict[str, Any] = {"fingerprint": self.fingerprint, "layout": self.layout, "version": self.version}
        if self.output.partition_by:
            own["partition_by"] = self.output.partition_by
        if chosen:
            own["chosen"] = asdict(Mask.of(np.concatenate(chosen)))
        written = writer.put(self.store, name, footer_for(part.spans, account, own))
        return PartRecord(part=name, spans=part.spans, layout=self.layout, **vars(written), **account)

    def _rows(
        self, part: Part, sources: Mapping[str, Source], answers: Iterable[pa.Table], chosen: list[Flags]
    ) -> Iterator[pa.Table]:
        """Yield the part's rows, some at a time, and add to `chosen` which of those that it covers they are.

        A row whose kept columns are damaged is an error row.
        """
        starts = range(0, part.num_rows, ROWS_AT_ONCE)
        groups = [tuple(part.within([(start, start + ROWS_AT_ONCE)])) for start in starts]
        for kept, own in zip(self.reader.tables(sources, groups), _at_once(answers), strict=True):
            if isinstance(kept, JobError):
                raise kept
            if CHOSEN in own.column_names:
                is_chosen = own[CHOSEN]
                chosen.append(is_chosen.to_numpy())
                kept, own = kept.filter(is_chosen), own.drop_columns([CHOSEN]).filter(is_chosen)
            own = _with_errors(own, kept["error"])
            yield pa.table([*kept.drop_columns(["error"]).columns, *own.columns], self._schema)

    @property
    def _schema(self) -> pa.Schema:
        return pa.schema([*(field.remove_metadata() for field in self.reader.schema), *self.answers])

    def _gathered(self, order: Order, degenerate: Counter[str]) -> Iterator[pa.Table]:
        """Yield the answers in the order of rows, and count those that are degenerate.

        Raises: FileNotFoundError; JobError where some are missing or damaged.
        """
        places = _places(order)
        starts, stops = [start for (start, _), *_ in places], [stop for (_, stop), *_ in places]
        if [*starts, order.part.num_rows] != [0, *stops]:
            num_rows = sum(stops) - sum(starts)
            raise JobError(f"{num_rows} answers are there for its {order.part.num_rows} rows")
        held: dict[Saved | None, pa.Table] = {}
        if order.earlier is not None:
            held[None] = spread(*self._read_part(order.earlier))
            degenerate.update(order.earlier.degenerate)
        for (start, stop), saved, first in places:
            if saved is not None and saved not in held:
                try:
                    answers, counts, chosen = saved.read(self.store, self.answers)
                except ValueError as error:
                    raise self._damaged(order, saved, error) from error
                degenerate.update(counts.degenerate)
                held[saved] = spread(answers, chosen)
            yield held[saved].slice(first, stop - start)
            if saved is not None and stop == saved.ranges[-1][1]:
                del held[saved]

    def _damaged(self, order: Order, found: Saved, error: ValueError) -> JobError:
        """Empty all files of answers to the part that are damaged, as this one, and return what to say of them."""
        others_found = [one for one in order.saved if one != found and one.is_damaged(self.store, self.answers)]
        for saved in (found, *others_found):
            saved.empty(self.store)
        others = f", and {len(others_found)} more of its files" if others_found else ""
        return JobError(
            f"{found.name} is damaged ({error}){others}. They count no more, and the same command computes them again."
        )

    def _read_part(self, record: PartRecord) -> tuple[pa.Table, Mask | None]:
        """Return the answers in a part, and which of its rows have one."""
        try:
            whole = PartFile.of(self.store, record.part).whole()
            return whole.table(self.answers), whole.footer.chosen
        except ValueError as error:
            raise JobError(f"{record.part}: {error}. The same command computes it again.") from error

    def _remove_earlier(self, order: Order, record: PartRecord) -> None:
        """Remove what a part was before, where that has another name, and its seal. Raises: StoreError."""
        earlier = order.earlier
        if earlier is None or (earlier.part, earlier.sha256) == (record.part, record.sha256):
            return
        if earlier.part != record.part:
            self.store.remove([earlier.part])
        if not earlier.part.endswith(".parquet"):
            self.store.discard([seal_name(earlier.part, earlier.sha256)])

    def _written_by_another(self, order: Order, missing: FileNotFoundError) -> PartRecord:
        """Return the record of a part that an attempt before, or another run of the job, has assembled of the same
        answers."""
        name = self.name(order.part)
        gone = JobError(f"{missing} is gone, and with it answers. The same command computes them again.")
        try:
            record = PartFile.of(self.store, name).whole().footer.record
        except (FileNotFoundError, ValueError):
            raise gone from missing
        if order.earlier is not None and record.sha256 == order.earlier.sha256:
            raise gone from missing
        if record.layout != self.layout:
            raise JobError(f"{missing} is gone, and {name} is of another layout: another job writes here.") from missing
        return replace(record, version=self.store.stat(name).version)


def spread(answers: pa.Table, chosen: Mask | None) -> pa.Table:
    """Return the answers in the places of the rows that they are to: those that are not chosen have nulls, and the
    column CHOSEN tells. `chosen` is None where all rows have answers."""
    if chosen is None:
        return answers
    places = pa.array(np.cumsum(chosen.flags) - 1, mask=~chosen.flags)
    return answers.take(places).append_column(CHOSEN, pa.array(chosen.flags))


def _places(order: Order) -> list[tuple[Range, Saved | None, int]]:
    """Return where the answers to each range of rows are, in their order: the file, or None for the part as it is,
    and the row of it where they begin."""
    places: list[tuple[Range, Saved | None, int]] = []
    for saved in order.saved:
        first = 0
        for start, stop in saved.ranges:
            places.append(((start, stop), saved, first))
            first += stop - start
    if order.earlier is not None:
        others = outside(order.part.num_rows, [own for own, *_ in places])
        places += [((start, stop), None, start) for start, stop in others]
    return sorted(places, key=lambda place: place[0])


def _at_once(tables: Iterable[pa.Table], most: int = ROWS_AT_ONCE, most_bytes: int | None = None) -> Iterator[pa.Table]:
    """Yield the rows of tables, `most` at a time, and fewer as soon as these have `most_bytes`."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while (num_rows := sum(map(len, held))) >= most:
            joined = pa.concat_tables(held)
            yield joined.slice(0, most)
            held = [rest] if len(rest := joined.slice(most)) else []  # an empty slice would hold all of the table
        if num_rows and most_bytes is not None and sum(one.nbytes for one in held) >= most_bytes:
            yield pa.concat_tables(held)
            held = []
    if any(map(len, held)):
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
