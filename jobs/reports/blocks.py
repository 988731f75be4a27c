"""Blocks are what a report consists of: facts, tables, plots, samples. They know no output and no page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise


class Share(float):
    """A part of a whole: 0.25 is written as 25 %."""


Cell = str | int | float | None
"""Numbers are written with thousands separators."""


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    values: Mapping[str, Cell]
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under a header."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """A table drawn as a bar for each row: the first column names it, the second, a number, is its length."""

    table: Table
    unit: str
    """Of the numbers."""

    @property
    def lengths(self) -> list[tuple[str, float]]:
        """The bars' names and lengths."""
        return [(str(name), length) for name, length, *_ in self.table.rows if isinstance(length, int | float)]


@dataclass(frozen=True)
class Histogram:
    """How many values lie where."""

    title: str
    unit: str
    """Of the values: the axis's title."""
    edges: tuple[float, ...]
    """Bin `i` counts values of `[edges[i], edges[i + 1])`."""
    counts: tuple[int, ...]
    counted: str = "rows"
    """What the values are of."""
    median: float = 0.0
    """The median of all values."""
    smallest: float = 0.0
    largest: float = 0.0
    beyond: int = 0
    """Values above the last edge: few, and so large that the others would not be seen beside them."""


@dataclass(frozen=True)
class Line:
    """Values along an axis, with the band that half of what they stand for lies in."""

    title: str
    across: str
    """The title of the horizontal axis, with its unit."""
    upwards: str
    """The same of the vertical axis."""
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float], ...] = ()
    """For each point (low, high); empty where there is none."""
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """A row: what was asked, and what was answered or went wrong."""

    title: str
    """Which row it is."""
    asked: Mapping[str, str]
    answered: Mapping[str, str]
    beside: Mapping[str, str] = field(default_factory=dict)
    """Kept columns, and counts."""
    error: str = ""


@dataclass(frozen=True)
class Samples:
    """Some rows."""

    title: str
    rows: tuple[Sample, ...]
    note: str = ""


@dataclass(frozen=True)
class Source:
    """A text that is shown as it is, such as a job file."""

    title: str
    text: str


Block = Facts | Table | Bars | Histogram | Line | Samples | Source


@dataclass(frozen=True)
class Section:
    """A chapter of a report."""

    title: str
    blocks: tuple[Block, ...]
    note: str = ""
    """What the reader should know of all of it."""


def table_of(block: Bars | Histogram | Line) -> Table:
    """Return the numbers of a plot as a table."""
    if isinstance(block, Bars):
        return block.table
    if isinstance(block, Line):
        header = (block.across, block.upwards, *(("lower quartile", "upper quartile") if block.band else ()))
        bands = block.band or ((),) * len(block.points)
        rows = tuple((*point, *band) for point, band in zip(block.points, bands, strict=True))
        return Table(block.title, header, rows)
    bins = zip(pairwise(block.edges), block.counts, strict=True)
    rows = tuple((low, high, count) for (low, high), count in bins if count)
    rest = ((block.edges[-1], None, block.beyond),) if block.beyond else ()
    return Table(block.title, (f"{block.unit}, from", "to below", block.counted), (*rows, *rest))
