"""Deleted rows are those of a file that are no rows of its table. Live rows are numbered without them."""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from batchloom.pipelines.planning.spans import Range, outside


@dataclass(frozen=True, slots=True)
class Deleted:
    """Deleted rows of a file, or of a stretch of it.

    rows of the file    0 1 2 3 4 5 6 7        3, 4 and 6 are deleted
    live rows           0 1 2     3   4        live rows 2 to 4 are the ranges [2, 3) and [5, 6) of the file
    """

    rows: Sequence[int]
    """Their numbers in the file, ascending."""
    before: int = 0
    """How many more are before these."""

    @property
    def digest(self) -> str:
        """A hash of the rows: where others are deleted, live rows are other rows."""
        return hashlib.sha256(b"".join(row.to_bytes(8, "little") for row in self.rows)).hexdigest()[:16]

    def row_of(self, live: int) -> int:
        """Return the row of the file that a live row is."""
        places = range(len(self.rows))
        return live + self.before + bisect_right(places, live, key=lambda i: self.rows[i] - i - self.before)

    def within(self, start: int, stop: int) -> "Deleted":
        """Return those that are needed to read the live rows `[start, stop)`."""
        first = bisect_left(self.rows, self.row_of(start))
        last = bisect_left(self.rows, self.row_of(stop - 1) if stop > start else 0)
        return Deleted(tuple(self.rows[first:last]), self.before + first)

    def ranges_of(self, start: int, stop: int) -> list[Range]:
        """Return where the live rows `[start, stop)` lie in the file."""
        low, high = self.row_of(start), self.row_of(stop - 1) + 1
        gone = self.rows[bisect_left(self.rows, low) : bisect_left(self.rows, high)]
        return [(low + a, low + b) for a, b in outside(high - low, [(row - low, row - low + 1) for row in gone])]

    def live(self, start: int, stop: int) -> Range:
        """Return which live rows the rows `[start, stop)` of the file are."""
        low, high = (row - self.before - bisect_left(self.rows, row) for row in (start, stop))
        return low, high

    def live_counts(self, row_groups: Sequence[int]) -> list[int]:
        """Return how many live rows row groups of so many rows have."""
        counts, first = [], 0
        for num_rows in row_groups:
            low, high = self.live(first, first + num_rows)
            counts.append(high - low)
            first += num_rows
        return counts
