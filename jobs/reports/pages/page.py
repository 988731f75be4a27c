"""Draw a report as one HTML page that loads nothing: its style and its plots are in it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from batchloom.jobs.reports.analysis.report import Report
from batchloom.jobs.reports.blocks import (
    Bars,
    Block,
    Cell,
    Facts,
    Histogram,
    Line,
    Sample,
    Samples,
    Section,
    Source,
    Table,
    table_of,
)
from batchloom.jobs.reports.pages import cells
from batchloom.jobs.reports.pages.plots import Plotter
from batchloom.jobs.reports.pages.style import STYLE
from batchloom.jobs.terminal.visible import visible
from batchloom.models.redaction import redacted

NARROW = 3  # columns of a table that stands beside others
# Whatever a text of the output brings along: no script runs, and nothing is fetched.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(report: Report) -> str:
    """Return the page. Everything that comes from data is escaped. Raises: ConfigError where plots cannot be drawn."""
    plotter = Plotter()
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">',
            f"<title>{_said(report.title)}</title><style>{STYLE}</style></head><body><main>",
            *_head(report),
            *(part for section in report.sections for part in _section(section, plotter)),
            "</main></body></html>\n",
        ]
    )


def _head(report: Report) -> Iterator[str]:
    yield f"<header><h1>{_said(report.title)}</h1><p>{_said(redacted(report.view.store.url))}</p>"
    yield f"<p>{_said(report.state.capitalize())}. Made {report.now:%Y-%m-%d %H:%M} UTC.</p></header>"
    tiles = "".join(_tile(name, value) for name, value in report.headline().items())
    yield f'<dl class="tiles card">{tiles}</dl>'


def _tile(name: str, value: Cell) -> str:
    mark = ' class="bad"' if name == "errors" and value else ""
    return f"<div><dt>{_said(name)}</dt><dd{mark}>{_said(cells.text(value))}</dd></div>"


def _section(section: Section, plotter: Plotter) -> Iterator[str]:
    yield f"<section><h2>{_said(section.title)}</h2>"
    if section.note:
        yield f'<p class="note">{_said(section.note)}</p>'
    yield '<div class="grid">'
    for block, place in zip(section.blocks, _places(section.blocks), strict=True):
        yield _block(block, place, plotter)
    yield "</div></section>"


def _places(blocks: Sequence[Block]) -> Iterator[str]:
    """Yield where in a grid of two columns each block stands: "" in one of them, "full" over both by its nature, and
    "full alone" where no neighbour would fill the other one."""
    are_full = [_is_full(block) for block in blocks]
    is_second = False
    for is_full, is_next_full in zip(are_full, [*are_full, True][1:], strict=True):
        is_alone = not is_full and not is_second and is_next_full
        is_second = not (is_full or is_second or is_alone)
        yield "full" if is_full else "full alone" if is_alone else ""


def _is_full(block: Block) -> bool:
    return isinstance(block, Samples | Source) or (isinstance(block, Table) and len(block.header) > NARROW)


def _block(block: Block, place: str, plotter: Plotter) -> str:
    match block:
        case Facts():
            return f'<div class="card {place}">{_heading(block.title)}{_facts(block)}</div>'
        case Table():
            table = _table(block, is_wide=len(block.header) > NARROW)
            return f'<div class="card {place}">{table}{_note(block.note)}</div>'
        case Samples():
            rows = "".join(_sample(row, place) for row, place in zip(block.rows, _sample_places(block), strict=True))
            return f'<div class="full">{_heading(block.title)}{_note(block.note)}</div>{rows}'
        case Source():
            text = f"<summary>{_said(block.title)}</summary><pre>{_said(block.text)}</pre>"
            return f'<details class="card full">{text}</details>'
    return _plot(block, place, plotter)


def _sample_places(block: Samples) -> list[str]:
    """The last one of an odd number has both columns."""
    return [""] * (len(block.rows) - 1) + ["full" if len(block.rows) % 2 else ""] if block.rows else []


def _plot(block: Bars | Histogram | Line, place: str, plotter: Plotter) -> str:
    """Where a plot is alone its numbers stand beside it; those of bars are few, and open then."""
    table = table_of(block)
    is_open = isinstance(block, Bars) and "alone" in place
    drawn = plotter.svg(block, _said(cells.description(block)))
    numbers = _table(Table("", table.header, table.rows), is_wide=False)
    return (
        f'<figure class="card plot {place}"><h3>{_said(cells.heading(block))}</h3>{drawn}<div><figcaption class="note">'
        f"{_said(cells.caption(block))}</figcaption><details{' open' if is_open else ''}><summary>Numbers</summary>"
        f"{numbers}</details></div></figure>"
    )


def _facts(block: Facts) -> str:
    pairs = (f"<dt>{_said(name)}</dt><dd>{_said(cells.text(value))}</dd>" for name, value in block.values.items())
    return f'<dl class="facts">{"".join(pairs)}</dl>'


def _table(table: Table, is_wide: bool) -> str:
    if not table.rows:
        return _heading(table.title)
    are_numbers = [any(map(cells.is_numeric, column)) for column in zip(*table.rows, strict=True)]
    marks = [' class="number"' if is_number else ' dir="auto"' for is_number in are_numbers]
    head = "".join(f'<th scope="col"{mark}>{_said(name)}</th>' for name, mark in zip(table.header, marks, strict=True))
    body = "".join(f"<tr>{''.join(_cells(table.header, row, marks))}</tr>" for row in table.rows)
    title = f"<caption>{_said(table.title)}</caption>" if table.title else ""
    kind = ' class="wide"' if is_wide else ""
    return f"<table{kind}>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(header: Iterable[str], row: Iterable[Cell], marks: Iterable[str]) -> Iterator[str]:
    for name, cell, mark in zip(header, row, marks, strict=True):
        yield f'<td{mark} data-label="{_said(name)}">{_said(cells.short(cell))}</td>'


def _sample(sample: Sample, place: str) -> str:
    pairs = [*_pairs(sample.asked, "asked"), *_pairs(sample.answered, "answer")]
    pairs += [f'<dt>error</dt><dd class="answer bad" dir="auto">{_said(sample.error)}</dd>'] if sample.error else []
    beside = " · ".join(
        f'<span dir="auto"><b>{_said(name)}</b> {_said(value)}</span>' for name, value in sample.beside.items()
    )
    under = f'<p class="note">{beside}</p>' if beside else ""
    return (
        f'<article class="card sample {place}"><h4>{_said(sample.title)}</h4><dl>{"".join(pairs)}</dl>{under}</article>'
    )


def _pairs(values: Mapping[str, str], kind: str) -> Iterator[str]:
    for name, value in values.items():
        yield f'<dt>{_said(name)}</dt><dd class="{kind}" dir="auto">{_said(value)}</dd>'


def _heading(title: str) -> str:
    return f"<h3>{_said(title)}</h3>" if title else ""


def _note(note: str) -> str:
    return f'<p class="note">{_said(note)}</p>' if note else ""


def _said(text: str) -> str:
    """Return a text for HTML: escaped, and without characters that steer how others are shown."""
    return escape(visible(text))
