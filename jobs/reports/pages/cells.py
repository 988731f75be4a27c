"""Format the cells of a report's tables, and say in a sentence what a plot shows."""

from batchloom.jobs.reports.blocks import Bars, Cell, Histogram, Line, Share, table_of
from batchloom.jobs.terminal.visible import visible

MAX_WORD = 60


def text(cell: Cell) -> str:
    """Format a cell: thousands separators, four significant digits, percent; a dash for none."""
    match cell:
        case None:
            return "–"
        case Share():
            return percent(cell)
        case bool() | str():
            return visible(str(cell))
        case int():
            return f"{cell:,}"
    return number(cell)


def short(cell: Cell) -> str:
    """Format a cell as `text` does, on one line and with at most MAX_WORD characters in each word."""
    words = text(cell).split()
    return " ".join(word if len(word) <= MAX_WORD else f"{word[:MAX_WORD]}…" for word in words)


def percent(share: float) -> str:
    """Format a share: `0.50 %`, `3.2 %`, `100 %`."""
    value = 100 * share
    if value in (0.0, 100.0):
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 0.995 else f"{value:.2f} %" if value >= 0.005 else f"{value:.2g} %"


def number(value: float) -> str:
    """Format a number with about four digits: `0.0312`, `12.5`, `1,240`."""
    if value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def is_numeric(cell: Cell) -> bool:
    """Whether a cell stands at the right of its column."""
    return isinstance(cell, int | float)


def heading(plot: Bars | Histogram | Line) -> str:
    """Return a plot's title. Bars have no axis, so their unit is in it."""
    title = table_of(plot).title
    return title if not isinstance(plot, Bars) or plot.unit in title.lower() else f"{title}, {plot.unit}"


def caption(plot: Bars | Histogram | Line) -> str:
    """Say what a plot shows: under it, and to those who do not see it."""
    match plot:
        case Bars():
            return plot.table.note
        case Line():
            return plot.note
    said = f"Median (dashed) {number(plot.median)}, from {number(plot.smallest)} to {number(plot.largest)}."
    if plot.beyond:
        said += f" {plot.beyond:,} of the {plot.counted} lie beyond {number(plot.edges[-1])} and are not drawn."
    return said


def description(plot: Bars | Histogram | Line) -> str:
    """Describe a plot to those who do not see it. The numbers are in a table beside it."""
    match plot:
        case Bars():
            rows = [f"{text(name)} {text(count)}" for name, count, *_ in plot.table.rows]
            more = f", and {len(rows) - 5} more" if len(rows) > 5 else ""
            return f"Bar chart: {plot.table.title}. {', '.join(rows[:5])}{more} {plot.unit}."
        case Line():
            (first, at_first), (last, at_last) = plot.points[0], plot.points[-1]
            return (
                f"Line chart: {plot.title}. From {number(at_first)} at {number(first)} to {number(at_last)} at "
                f"{number(last)} ({plot.upwards} over {plot.across})."
            )
    return f"Histogram: {plot.title}, {plot.counted} by {plot.unit}. {caption(plot)}"
