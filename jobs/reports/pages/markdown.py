"""Write a report as Markdown: the same figures as the page, with tables in place of plots."""

import re
from collections.abc import Iterator, Mapping

from batchloom.jobs.reports.analysis.report import Report
from batchloom.jobs.reports.blocks import Block, Cell, Facts, Sample, Samples, Source, Table, table_of
from batchloom.jobs.reports.pages import cells
from batchloom.jobs.terminal.visible import visible
from batchloom.models.redaction import redacted

_MARKS = re.compile(r"([\\`*_\[\]<>#|~&$]|:(?=//)|(?<=www)\.)")  # the last two keep addresses from being links


def markdown(report: Report) -> str:
    """Return the report. What comes from data is text and no markup."""
    lines = [f"# {_said(report.title)}", "", f"{_said(redacted(report.view.store.url))}", ""]
    lines += [f"{_said(report.state.capitalize())}. Made {report.now:%Y-%m-%d %H:%M} UTC.", ""]
    lines += _pairs(report.headline())
    for section in report.sections:
        lines += [f"## {section.title}", "", *([_said(section.note), ""] if section.note else [])]
        for block in section.blocks:
            lines += _block(block)
    return "\n".join(lines).rstrip() + "\n"


def _block(block: Block) -> Iterator[str]:
    match block:
        case Facts():
            yield from _title(block.title)
            yield from _pairs(block.values)
        case Table():
            yield from _title(block.title)
            yield from _table(block)
            yield from _note(block.note)
        case Samples():
            yield from _title(block.title)
            yield from _note(block.note)
            for row in block.rows:
                yield from _sample(row)
        case Source():
            yield from _title(block.title)
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.text)), default=0))
            yield from (f"{fence}yaml", visible(block.text).rstrip(), fence, "")
        case _:
            table = table_of(block)
            yield from _title(table.title)
            yield from _table(table)
            yield from _note(cells.caption(block))


def _table(table: Table) -> Iterator[str]:
    if not table.rows:
        return
    are_numbers = [any(map(cells.is_numeric, column)) for column in zip(*table.rows, strict=True)]
    yield f"| {' | '.join(map(_said, table.header))} |"
    yield f"|{'|'.join('---:' if is_number else '---' for is_number in are_numbers)}|"
    for row in table.rows:
        yield f"| {' | '.join(_said(cells.short(cell)) for cell in row)} |"
    yield ""


def _pairs(values: Mapping[str, Cell]) -> Iterator[str]:
    yield from (f"- {_said(name)}: {_said(cells.text(value))}" for name, value in values.items())
    yield ""


def _sample(sample: Sample) -> Iterator[str]:
    yield f"**{_said(sample.title)}**"
    yield ""
    error = {"error": sample.error} if sample.error else {}
    for name, value in {**sample.asked, **sample.answered, **error, **sample.beside}.items():
        yield f"- {_said(name)}: {_line(value)}"
    yield ""


def _title(title: str) -> Iterator[str]:
    if title:
        yield from (f"### {_said(title)}", "")


def _note(note: str) -> Iterator[str]:
    if note:
        yield from (_said(note), "")


def _line(text: str) -> str:
    return _said(" ".join(text.split()))


def _said(text: str) -> str:
    """Return a text whose marks are no markup."""
    return _MARKS.sub(r"\\\1", visible(text))
