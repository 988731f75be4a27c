"""Cut shards into parts, and parts into units: what is one file of the output, and what is computed together.

Three sizes. A *part* is a file of the output: as many rows as readers like. A *unit* is what is computed
together: as much as memory likes. What a kill cannot take back are the answers of finished units, whether or not
their part is finished. Neither size decides an answer, so both may change between two runs of a job.
"""

import hashlib
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from batchloom.pipelines.columns.partition_by import partition_folder
from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.planning.spans import Range, Span, common, starts_of, within
from batchloom.pipelines.selection.mask import Mask

STEM_BYTES = 180  # of the shard's name in a part's name: filesystems allow 255 bytes, and a character may have four
MAX_SHARDS = 4096  # in a part: each of them stands in its footer


@dataclass(frozen=True)
class Size:
    """The most that a part or a unit may have."""

    rows: int
    bytes: int
    """Of the columns that are used, before compression, by the footers."""


@dataclass(frozen=True)
class Part:
    """Rows that are one file of the output, in this order."""

    spans: tuple[Span, ...]

    @cached_property
    def num_rows(self) -> int:
        return sum(span.num_rows for span in self.spans)

    @cached_property
    def _starts(self) -> list[int]:
        return starts_of(self.spans)

    def within(self, ranges: Iterable[Range]) -> Iterator[Span]:
        """Yield the spans of ranges of its rows."""
        return within(self.spans, self._starts, ranges)

    @cached_property
    def id(self) -> str:
        """A hash of which rows of which versions of files they are: 12 hexadecimal digits."""
        identity = [[span.shard, span.identity, span.start, span.stop] for span in self.spans]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]

    @property
    def stem(self) -> str:
        return stem(self.spans)

    def name(self, fingerprint: str, ending: str = ".parquet", partition_by: Sequence[str] = ()) -> str:
        """Return the file's name below the output folder, a function of the rows, the fingerprint, and how parts are
        written."""
        folder = partition_folder(self.spans[0].shard, partition_by)
        return f"{folder}part-{self.stem}-{self.id}-{fingerprint[:8]}{ending}"


@dataclass(frozen=True)
class Unit:
    """Rows of a part that are computed together."""

    part: str
    """The part's id."""
    ranges: tuple[Range, ...]
    """Which rows of the part."""
    spans: tuple[Span, ...]
    """The same rows as those of shards."""
    is_whole: bool
    """It is the whole part."""
    chosen: Mask | None = None
    """Which of these rows are answered, from their reading on, where the job has a selection."""

    @property
    def num_rows(self) -> int:
        """Rows of the input that it covers."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def id(self) -> str:
        """Tells it from all other units of a job."""
        return f"{self.part}-{'-'.join(f'{start}.{stop}' for start, stop in self.ranges)}"

    @property
    def stem(self) -> str:
        return stem(self.spans)

    def row(self, number: int) -> tuple[str, int]:
        """Return which row of which shard an answered row of the unit is."""
        if self.chosen is not None:
            number = int(self.chosen.rows[number])
        for span in self.spans:
            if number < span.num_rows:
                return span.shard, span.start + number
            number -= span.num_rows
        raise IndexError(number)


def stem(spans: Sequence[Span]) -> str:
    """Return a readable name: the first shard's file name without extension, and which rows or how many more."""
    name = posixpath.basename(spans[0].shard).removesuffix(".parquet")
    safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in name).lstrip("._") or "shard"
    short = safe[:80].encode()[:STEM_BYTES].decode(errors="ignore")
    start, stop = spans[0].start, spans[-1].stop
    if others := len({span.shard for span in spans}) - 1:
        return f"{short}-and-{others}-more"
    return f"{short}-{start:09d}-{stop:09d}"


def parts_of(shards: Iterable[Shard], most: Size) -> Iterator[Part]:
    """Yield the parts of all rows: ranges of a large shard, or several whole small ones that follow each other."""
    gathered: list[Span] = []
    room = most
    for shard in shards:
        span = Span(shard.name, shard.source.identity, 0, shard.num_rows)
        is_small = shard.num_rows <= most.rows and shard.num_bytes <= most.bytes
        has_room = shard.num_rows <= room.rows and shard.num_bytes <= room.bytes and len(gathered) < MAX_SHARDS
        if gathered and not has_room:
            yield Part(tuple(gathered))
            gathered, room = [], most
        if not is_small:
            yield from (
                Part((Span(span.shard, span.identity, *rows),))
                for rows in cut(shard.pieces(0, shard.num_rows, with_kept=True), most)
            )
        elif shard.num_rows:
            gathered.append(span)
            room = Size(room.rows - shard.num_rows, room.bytes - shard.num_bytes)
    if gathered:
        yield Part(tuple(gathered))


def units_of(part: Part, missing: Sequence[Range], shards: Mapping[str, Shard], most: Size) -> Iterator[Unit]:
    """Yield units of the missing rows of a part. `shards`: those of the part, by name.

    The part is cut the same way whatever is missing of it, and what is left of several cuts is joined to a unit.
    """
    gathered: list[Range] = []
    room = most.rows
    for whole in cut(
        (piece for span in part.spans for piece in shards[span.shard].pieces(span.start, span.stop)), most
    ):
        left = common([whole], missing)
        num_rows = sum(stop - start for start, stop in left)
        if gathered and (num_rows > room or num_rows == whole[1] - whole[0]):
            yield _unit(part, gathered)
            gathered, room = [], most.rows
        gathered += left
        room -= num_rows
        if num_rows == whole[1] - whole[0]:
            yield _unit(part, gathered)
            gathered, room = [], most.rows
    if gathered:
        yield _unit(part, gathered)


def num_units(part: Part, shards: Mapping[str, Shard], most: Size) -> int:
    """Return into how many units a whole part is cut."""
    pieces = (piece for span in part.spans for piece in shards[span.shard].pieces(span.start, span.stop))
    return sum(1 for _ in cut(pieces, most))


def _unit(part: Part, ranges: Sequence[Range]) -> Unit:
    spans = tuple(part.within(ranges))
    return Unit(part.id, tuple(ranges), spans, is_whole=spans == part.spans)


def cut(pieces: Iterable[tuple[int, int]], most: Size) -> Iterator[Range]:
    """Yield ranges of rows: several whole pieces that fit, or an even slice of one that does not fit alone.

    `pieces`: rows and bytes of row groups that follow each other. Pieces of 3, 3, 3 and 20 rows at 8 rows, of few
    bytes: [0,6) [6,9) [9,16) [16,23) [23,29).
    """
    start = stop = num_bytes = 0
    for rows, more in pieces:
        if stop > start and (stop + rows - start > most.rows or num_bytes + more > most.bytes):
            yield from _slices(start, stop, num_bytes, most)
            start, num_bytes = stop, 0
        stop += rows
        num_bytes += more
    if stop > start:
        yield from _slices(start, stop, num_bytes, most)


def _slices(start: int, stop: int, num_bytes: int, most: Size) -> Iterator[Range]:
    rows = stop - start
    num_slices = min(rows, max(-(-rows // most.rows), -(-num_bytes // most.bytes)))
    yield from pairwise(start + rows * i // num_slices for i in range(num_slices + 1))
