"""Places are the rows that are looked at: so many places, each somewhere in its own equal stretch of the input's rows.

    rows      0         10         20         30        of 40, at 8 rows in 4 places
    stretch  |         |          |          |         |
    place       xx         xx        xx            xx

A row costs the row group that it lies in. Where all of them together are small, all are read, and each row of the
sample is a place of its own; where they are not, as few row groups are fetched as the limits below say.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.planning.spans import Span

MOST_BYTES = 1 << 28  # of row groups, in the columns that are read: seconds from a store
MOST_GROUPS = 256  # of them: as many requests
LEAST_PLACES = 16  # whatever they cost

Counts = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Place:
    """Rows that follow each other, and how many they stand for."""

    rows: range
    """By their number among all rows that there are."""
    num_stretch_rows: int
    spans: tuple[Span, ...] = ()
    """Where they lie in the input."""

    @property
    def num_rows(self) -> int:
        return len(self.rows)


def places_of(shards: Sequence[Shard], num_rows: int) -> Iterator[Place]:
    """Yield places of `num_rows` rows together, or of all that there are, in the order of the input."""
    ends = list(accumulate(shard.num_rows for shard in shards))
    for place in places_among(ends[-1] if ends else 0, num_rows, _affordable(shards)):
        yield replace(place, spans=tuple(_spans(shards, ends, place.rows.start, place.rows.stop)))


def places_among(total: int, num_rows: int, num_places: int | None = None) -> Iterator[Place]:
    """Yield places of `num_rows` of `total` rows; None: each row is one."""
    num_rows = min(num_rows, total)
    num_places = num_rows if num_places is None else min(num_rows, num_places)
    chance = np.random.default_rng(0)  # two plans of one job look at the same rows
    num_done = 0
    for place in range(num_places):
        start, stop = (number * total // num_places for number in (place, place + 1))
        own = min((place + 1) * num_rows // num_places - num_done, stop - start)  # what has no room, the next one has
        num_done += own
        first = start + int(chance.integers(0, stop - start - own, endpoint=True))
        yield Place(range(first, first + own), stop - start)


def is_read_whole(shards: Sequence[Shard]) -> bool:
    """Return whether all rows are read, as they are few."""
    rows, sizes = _row_groups(shards)
    return len(rows) <= MOST_GROUPS and sizes.sum() <= MOST_BYTES


def _affordable(shards: Sequence[Shard]) -> int:
    """Return how many places may be looked at, each in a row group that is fetched whole."""
    rows, sizes = _row_groups(shards)
    of_a_row = (sizes * rows).sum() / max(rows.sum(), 1)  # large row groups have more of the rows
    return max(LEAST_PLACES, min(MOST_GROUPS, int(MOST_BYTES / max(of_a_row, 1))))


def _row_groups(shards: Sequence[Shard]) -> tuple[Counts, Counts]:
    """[row groups]: rows, and bytes."""
    rows = np.fromiter((rows for shard in shards for rows in shard.row_groups), float)
    sizes = np.fromiter((size for shard in shards for size in shard.read_bytes or [0] * len(shard.row_groups)), float)
    return rows, sizes


def _spans(shards: Sequence[Shard], ends: Sequence[int], start: int, stop: int) -> Iterator[Span]:
    while start < stop:
        number = bisect.bisect_right(ends, start)
        source, before = shards[number].source, ends[number] - shards[number].num_rows
        last = min(stop, ends[number])
        yield Span(source.name, source.identity, start - before, last - before)
        start = last
