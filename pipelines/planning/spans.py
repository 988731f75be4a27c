"""Spans of rows, and the rows of shards that some spans cover. It knows no files."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

Range = tuple[int, int]
"""Rows `[start, stop)`."""


@dataclass(frozen=True, order=True, slots=True)
class Span:
    """The rows `[start, stop)` of one shard, and which version of it."""

    shard: str
    """The name of its source."""
    identity: str
    """That of its source."""
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


class Coverage:
    """Which rows of which shards are covered. Neighbouring ranges are kept as one."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._ranges: dict[str, list[Range]] = {}
        for span in spans:
            self.add(span)

    def add(self, span: Span) -> bool:
        """Cover a span; return False, and cover nothing, where some of its rows are covered already."""
        ranges = self._ranges.setdefault(span.shard, [])
        place = bisect_right(ranges, (span.start, span.start))
        before = ranges[place - 1] if place else (-1, -1)
        after = ranges[place] if place < len(ranges) else (span.stop + 1, span.stop + 1)
        if span.num_rows and (before[1] > span.start or after[0] < span.stop):
            return False
        start = before[0] if before[1] == span.start else span.start
        stop = after[1] if after[0] == span.stop else span.stop
        ranges[place - (start != span.start) : place + (stop != span.stop)] = [(start, stop)] if stop > start else []
        return True

    def missing(self, span: Span) -> list[Range]:
        """Return the ranges of a span that are not covered, in order."""
        ranges = self._ranges.get(span.shard, [])
        missing, start = [], span.start
        for low, high in _from(ranges, span.start):
            if low >= span.stop:
                break
            if low > start:
                missing.append((start, low))
            start = max(start, high)
        if start < span.stop:
            missing.append((start, span.stop))
        return missing

    def num_rows(self, shard: str) -> int:
        return sum(stop - start for start, stop in self._ranges.get(shard, []))


def starts_of(spans: Iterable[Span]) -> list[int]:
    """Return the row at which each span begins, of the rows that they are one after the other."""
    return list(accumulate((span.num_rows for span in spans), initial=0))[:-1]


def within(spans: Sequence[Span], starts: Sequence[int], ranges: Iterable[Range]) -> Iterator[Span]:
    """Yield the spans that lie at ranges of the rows that `spans` are, one after the other. `starts`: of these."""
    for low, high in ranges:
        for place in range(max(0, bisect_right(starts, low) - 1), bisect_left(starts, high)):
            span, first = spans[place], starts[place]
            start, stop = max(low - first, 0), min(high - first, span.num_rows)
            if start < stop:
                yield Span(span.shard, span.identity, span.start + start, span.start + stop)


def outside(num_rows: int, ranges: Iterable[Range]) -> list[Range]:
    """Return the ranges of `[0, num_rows)` that lie in none of these, which are disjoint."""
    left, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            left.append((start, low))
        start = max(start, high)
    return [*left, (start, num_rows)] if start < num_rows else left


def common(one: Iterable[Range], other: Sequence[Range]) -> list[Range]:
    """Return the ranges that lie in both lists, each of which is ascending and disjoint."""
    found = []
    for low, high in one:
        for start, stop in _from(other, low):
            if start >= high:
                break
            if max(low, start) < min(high, stop):
                found.append((max(low, start), min(high, stop)))
    return found


def _from(ranges: Sequence[Range], row: int) -> Iterator[Range]:
    """Yield ranges, which ascend, from the last one that begins at or before a row. A slice would be a copy of all."""
    return (ranges[place] for place in range(max(0, bisect_right(ranges, (row, row)) - 1), len(ranges)))
