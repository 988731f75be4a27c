"""Format some rows of an output for a terminal: as a table where it fits, otherwise as one record after another."""

from collections.abc import Collection, Iterator, Sequence

from rich.console import Console, ConsoleOptions, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

from batchloom.jobs.reports import wording
from batchloom.jobs.reports.view import Row
from batchloom.jobs.terminal.visible import visible

MIN_WIDTH = 20  # of a shortened column; in narrower ones a table is harder to read than records
GAP = 2


class RowTable:
    """A rich renderable of some columns of rows; an error row's error is shown in place of its answer."""

    def __init__(self, rows: Sequence[Row], columns: Sequence[str], whole: Collection[str] = ()) -> None:
        """`whole`: columns that are not shortened, as people copy them."""
        self._columns = [visible(name) for name in columns]
        self._are_whole = [name in whole for name in columns]
        self._rows = [[_cell(row, name) for name in columns] for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        widest = [
            max(len(name), *(cell.cell_len for cell in cells))
            for name, cells in zip(self._columns, zip(*self._rows, strict=True), strict=True)
        ]
        room = options.max_width - GAP * (len(widest) - 1)
        free = [place for place, is_whole in enumerate(self._are_whole) if not is_whole]
        room -= sum(widest) - sum(widest[place] for place in free)
        widths = list(widest)
        for place, width in zip(free, shared_widths([widest[place] for place in free], room), strict=True):
            widths[place] = width
        if any(width < min(wanted, MIN_WIDTH) for width, wanted in zip(widths, widest, strict=True)):
            yield from self._records()
        else:
            yield self._table(widths)

    def _table(self, widths: Sequence[int]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
        for name, width in zip(self._columns, widths, strict=True):
            table.add_column(name, width=width, no_wrap=True, overflow="ellipsis")
        for row in self._rows:
            table.add_row(*row)
        return table

    def _records(self) -> Iterator[Text]:
        for number, row in enumerate(self._rows):
            if number:
                yield Text("")
            for name, cell, is_whole in zip(self._columns, row, self._are_whole, strict=True):
                overflow: OverflowMethod = "ignore" if is_whole else "ellipsis"
                yield Text.assemble((f"{name}: ", "bold"), cell, no_wrap=True, overflow=overflow)


def shared_widths(wanted: Sequence[int], room: int) -> list[int]:
    """Return widths that fit into `room`: narrow columns keep theirs, wide ones share the rest equally.

    [8, 40, 90] in 60 gives [8, 26, 26].
    """
    widths = list(wanted)
    left = room
    for number, index in enumerate(sorted(range(len(wanted)), key=lambda i: wanted[i])):
        share = left // (len(wanted) - number)
        widths[index] = max(min(wanted[index], share), 1)
        left -= widths[index]
    return widths


def _cell(row: Row, name: str) -> Text:
    value = row.get(name)  # a damaged part may have other columns
    if value is None and row.get("error"):
        return Text(visible(f"{row['error']['kind']}: {row['error']['message']}"), "red")
    return Text(visible(wording.value(value)))
