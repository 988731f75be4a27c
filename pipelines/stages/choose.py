"""Choose answers which of a unit's rows are answered, where the job has a selection. Left-out rows go no further."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from batchloom.pipelines.errors import JobError, failing_as
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.planning.spans import Range, Span
from batchloom.pipelines.planning.units import Size, Unit
from batchloom.pipelines.selection.mask import Mask
from batchloom.pipelines.selection.selection import Selection, with_errors
from batchloom.pipelines.stages.reader import Reader
from batchloom.pipelines.stages.work import Work

Chosen = tuple[pa.Table, Mask]
"""The chosen rows, and which of all they are."""


@dataclass(frozen=True)
class Choose:
    """Chooses rows of spans. A row for which nobody can tell is chosen: it is an error, and not left out silently."""

    reader: Reader
    """Of the selection's columns alone."""
    selection: Selection

    def chosen(self, sources: Mapping[str, Source], spans: Sequence[Span], rows: pa.Table) -> Chosen | JobError:
        """Return which of the rows are chosen. `rows` have the columns of the selection, and others, and `error`.

        Where rows are damaged, the selection's columns are read alone: damage of others does not concern it. JobError
        as the reader gives it, or where the expression cannot be computed.
        """
        known: pa.Table | JobError = rows
        if rows["error"].null_count < len(rows):
            (known,) = self.reader.tables(sources, [spans])
        if isinstance(known, JobError):
            return known
        try:
            with failing_as(f"Evaluating input.where for {spans[0].shard}"):
                is_true, unclear = self.selection.where_true(known)
        except JobError as error:
            return error
        is_damaged = pc.is_valid(known["error"]).to_numpy().copy()
        is_damaged[list(unclear)] = True
        flags = self.selection.sampled(spans) & (is_true | is_damaged)
        return with_errors(rows, unclear).filter(pa.array(flags)), Mask.of(flags)


def joined(works: Iterable[Work], most: Size) -> Iterator[Work]:
    """Yield units that follow each other in a part, and that few rows were chosen of, as one: what replicas compute
    together is to be large enough."""
    held: list[Work] = []
    for work in works:
        if held and not (_follows(held[-1], work) and _fits([*held, work], most)):
            yield _one(held)
            held = []
        held.append(work)
    if held:
        yield _one(held)


def _follows(before: Work, after: Work) -> bool:
    has_failed = before.failure is not None or after.failure is not None
    follows = before.unit.ranges[-1][1] == after.unit.ranges[0][0]
    return not has_failed and before.unit.part == after.unit.part and follows


def _fits(works: Sequence[Work], most: Size) -> bool:
    num_bytes = sum(work.rows.nbytes for work in works)
    return sum(work.rows.num_rows for work in works) <= most.rows and num_bytes <= most.bytes


def _one(works: Sequence[Work]) -> Work:
    if len(works) == 1:
        return works[0]
    units = [work.unit for work in works]
    ranges, spans = list[Range](), list[Span]()
    for unit in units:
        for start, stop in unit.ranges:
            if ranges and ranges[-1][1] == start:
                start, _ = ranges.pop()
            ranges.append((start, stop))
        for span in unit.spans:
            if spans and (spans[-1].shard, spans[-1].stop) == (span.shard, span.start):
                span = replace(span, start=spans.pop().start)
            spans.append(span)
    mask = Mask.joined(unit.chosen for unit in units if unit.chosen is not None)
    unit = Unit(units[0].part, tuple(ranges), tuple(spans), is_whole=False, chosen=mask)
    return replace(works[0], unit=unit, sources={}, rows=pa.concat_tables([work.rows for work in works]))
