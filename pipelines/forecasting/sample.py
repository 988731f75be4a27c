"""A sample: some rows of a job, spread over its input, read and chosen in this process as workers do.

Where all of the input is small enough to be read, it is: then it is known how many rows are chosen and how long their
texts are, and the sample has rows of all lengths that tell what these mean in tokens. Of a larger input a few places
are read.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom.pipelines.errors import InputError
from batchloom.pipelines.forecasting.expected import Expected, Values, exactly, expected
from batchloom.pipelines.forecasting.places import Place, is_read_whole, places_among, places_of
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.planning.shards import sources_of
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.running.stages import read_of
from batchloom.pipelines.stages.read import Stretch
from batchloom.pipelines.stages.work import Work

THREADS = 8  # each waits for a store, one file after the other

Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Sample:
    """Rows of a job that stand for all of them."""

    places: Sequence[Place]
    """Of chosen rows where all of the input was read, else of rows of the input."""
    rows: pa.Table
    """The chosen ones: the columns that the task reads, and `error`."""
    spans: Sequence[Span]
    """Of each chosen row."""
    numbers: Numbers
    """Which row of the places each chosen row is."""
    sizes: Values
    """Bytes of each chosen row's texts."""
    total_size: float | None
    """Of all chosen rows of the job; None where not all were read."""

    @staticmethod
    def of(job: JobPlan, num_rows: int) -> "Sample":
        """Look at `num_rows` rows. Raises: InputError where they cannot be read."""
        if is_read_whole(job.shards):
            whole = [Span(one.name, one.source.identity, 0, one.num_rows) for one in job.shards if one.num_rows]
            read = _Rows.of(_read(job, whole))
            places = list(places_among(read.table.num_rows, num_rows))
            sizes = _sizes(read.table)
            by_size = np.argsort(sizes, kind="stable")  # so that any row of a stretch is like the others
            drawn = by_size[[row for place in places for row in place.rows]]
            own = read.taken(drawn)
            return Sample(places, own.table, own.spans, np.arange(len(drawn)), sizes[drawn], float(sizes.sum()))
        places = list(places_of(job.shards, num_rows))
        read = _Rows.of(_read(job, [span for place in places for span in place.spans]))
        return Sample(places, read.table, read.spans, read.numbers, _sizes(read.table), None)

    @property
    def num_looked_at(self) -> int:
        return sum(place.num_rows for place in self.places)

    def expected(self, values: Values) -> Expected:
        """Scale what each chosen row has to all rows of the job."""
        if self.total_size is None:
            return expected(self._spread(values), self.places)
        return expected(values, self.places, self.sizes, self.total_size)

    @property
    def chosen(self) -> Expected:
        """Rows that are answered."""
        if self.total_size is not None:
            return exactly(sum(place.num_stretch_rows for place in self.places))
        return expected(self._spread(np.ones(len(self.numbers))), self.places)

    def work(self, numbers: Sequence[int]) -> Work:
        """Return chosen rows, by their number, as a unit of their own. Their seeds are those of a run."""
        spans = tuple(self.spans[number] for number in numbers)
        unit = Unit(part="", ranges=((0, len(spans)),), spans=spans, is_whole=False)
        return Work(unit=unit, rows=self.rows.take(pa.array(numbers, pa.int64())))

    def _spread(self, values: Values) -> Values:
        of_all = np.zeros(self.num_looked_at)
        of_all[self.numbers] = values
        return of_all


@dataclass(frozen=True)
class _Rows:
    """Chosen rows, where each lies, and its number among all that were read."""

    table: pa.Table
    shards: Sequence[Span]
    """The spans that were read."""
    numbers: Numbers

    @staticmethod
    def of(works: Sequence[Work]) -> "_Rows":
        before, numbers = 0, [np.zeros(0, np.int64)]
        for work in works:
            own = np.arange(work.rows.num_rows) if work.unit.chosen is None else work.unit.chosen.rows
            numbers.append(before + own)
            before += work.unit.num_rows
        if not works:
            raise InputError("The input has no rows, so there are none to look at.")
        table = pa.concat_tables([work.rows for work in works])
        return _Rows(table, [span for work in works for span in work.unit.spans], np.concatenate(numbers))

    def taken(self, rows: Numbers) -> "_Rows":
        return _Rows(self.table.take(pa.array(rows)), self.shards, self.numbers[rows])

    @property
    def spans(self) -> list[Span]:
        """Of each row."""
        ends = np.cumsum([span.num_rows for span in self.shards])
        inside = np.searchsorted(ends, self.numbers, side="right")
        starts = [span.start - end + span.num_rows for span, end in zip(self.shards, ends.tolist(), strict=True)]
        places = [(self.shards[one], starts[one] + row) for one, row in zip(inside, self.numbers.tolist(), strict=True)]
        return [replace(span, start=row, stop=row + 1) for span, row in places]


def _read(job: JobPlan, spans: Sequence[Span]) -> list[Work]:
    cuts = [number * len(spans) // THREADS for number in range(THREADS + 1)]
    with ThreadPoolExecutor(THREADS) as pool:
        parts = [spans[start:stop] for start, stop in pairwise(cuts) if start < stop]
        return list(pool.map(lambda part: _work(job, part), parts))


def _work(job: JobPlan, spans: Sequence[Span]) -> Work:
    unit = Unit("", ((0, sum(span.num_rows for span in spans)),), tuple(spans), is_whole=False)
    (work,) = read_of(job).works(Stretch(sources_of(spans, job.shards_by_name), [unit]))
    if work.failure is not None:
        raise InputError(work.failure)
    return work


def _sizes(rows: pa.Table) -> Values:
    """[rows]: bytes of the texts; of lists, those of all members."""
    sizes = np.zeros(rows.num_rows)
    for column in _columns(rows):
        lengths, owners = column, np.arange(rows.num_rows)
        while pa.types.is_list(lengths.type) or pa.types.is_large_list(lengths.type):
            owners = owners[pc.list_parent_indices(lengths).to_numpy()]
            lengths = pc.list_flatten(lengths)
        if _has_bytes(lengths.type):
            bytes_of = pc.fill_null(pc.binary_length(lengths), 0).to_numpy()
            sizes += np.bincount(owners, weights=bytes_of, minlength=rows.num_rows)
    return sizes


def _columns(rows: pa.Table) -> Iterable[pa.Array]:
    for name in rows.column_names:
        if name != "error":
            yield rows[name].combine_chunks()


def _has_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )  # fmt: skip
