"""Draw a report as one self-contained HTML page: figures, bars, rows, in light and dark mode."""

import os
from collections.abc import Iterable, Mapping
from html import escape

from batchloom.jobs import spec
from batchloom.jobs.reports import wording
from batchloom.jobs.reports.report import Histogram, Report
from batchloom.jobs.reports.view import Row, chosen_columns
from batchloom.models.redaction import redacted, redacted_values
from batchloom.pipelines.errors import ConfigError

STYLE = """
:root {
  --ink: #1c2430; --soft: #667085; --line: #e4e7ec; --paper: #fff; --ground: #f6f7f9; --fill: #3f6fd8; --bad: #c4382f
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ef; --soft: #97a1b3; --line: #2b3342; --paper: #181e29; --ground: #10141c; --fill: #7aa2f7;
    --bad: #ff8077;
  }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 64px }
h1 { font-size: 24px; line-height: 1.25; margin: 0 }
h2 { font-size: 13px; font-weight: 600; color: var(--soft); margin: 0 0 12px }
header p { margin: 4px 0 24px; color: var(--soft); overflow-wrap: anywhere }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px }
section { padding: 20px; margin: 0 0 16px }
.grid { margin: 0 0 16px; display: grid; gap: 16px }
.grid { grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)) }
.grid section { margin: 0 }
.figures { display: grid; gap: 20px 16px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)) }
.figures b { display: block; font-size: 26px; font-weight: 600; line-height: 1.2; font-variant-numeric: tabular-nums }
.figures span, .note { color: var(--soft); font-size: 13px }
.bad { color: var(--bad) }
svg { display: block; width: 100%; height: 120px }
svg rect { fill: var(--fill) }
.axis { display: flex; justify-content: space-between; border-top: 1px solid var(--line); color: var(--soft) }
.axis { font-size: 12px }
.kind { display: grid; grid-template-columns: 9em 1fr auto; gap: 12px; align-items: center; margin: 6px 0 }
.kind i { height: 8px; border-radius: 4px; background: var(--bad); min-width: 3px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: 13.5px }
th { text-align: left; font-weight: 600; color: var(--soft); white-space: nowrap }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top }
td { min-width: 110px; max-width: 420px; overflow-wrap: anywhere }
tr:last-child td { border-bottom: 0 }
details { margin-top: 8px } summary { cursor: pointer; color: var(--soft); font-size: 13px }
pre { overflow-x: auto; font: 12.5px/1.5 ui-monospace, monospace; margin: 12px 0 0 }
"""
MAX_CELL_CHARACTERS = 400


def write(report: Report, path: str) -> None:
    """Write the page to a file, which only its owner may read where it is new: it holds texts of the output.

    Raises:
        ConfigError: `path` cannot be written.
    """
    try:
        with open(path, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(page(report))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--html {path}: cannot be written: {reason}.") from error


def page(report: Report) -> str:
    """Return the page. Everything that comes from data is escaped."""
    job = redacted_values(report.view.job)
    state = "finished" if report.view.manifest else "not finished yet"
    title = f"{job['task']} with {job['model'].rstrip('/').rsplit('/', 1)[-1]}"
    histograms = [_section(name, _histogram(name, lengths)) for name, lengths in report.histograms().items()]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>",
            f"<header><h1>{escape(title)}</h1><p>{escape(redacted(report.view.store.url))}, {state}</p></header>",
            f'<section class="figures">{"".join(_figures(report))}</section>',
            f'<div class="grid">{"".join([*histograms, *_errors(report.view.errors_by_kind)])}</div>',
            _section("Some rows", _table(report.sample)) if report.sample else "",
            _section("The job", _job(report)),
            "</main></body></html>",
        ]
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _figures(report: Report) -> Iterable[str]:
    totals, figures = report.view.totals, report.figures
    yield _figure(f"{totals['rows']:,}", f"rows in {wording.plural(totals['parts'], 'part')}")
    yield _figure(f"{totals['ok']:,}", "answered")
    yield _figure(f"{totals['errors']:,}", "errors", is_bad=totals["errors"] > 0)
    if totals["left_out"]:
        yield _figure(f"{totals['left_out']:,}", "rows left out")
    yield _figure(f"{totals['input_tokens']:,}", "tokens read")
    yield _figure(f"{totals['output_tokens']:,}", "tokens written")
    if totals["truncated_tokens"]:
        share = f"{report.num_rows_truncated:,} of {report.num_rows_read:,} rows"
        yield _figure(f"{totals['truncated_tokens']:,}", f"tokens cut off, in {share}")
    if figures is None:
        return
    if figures.rows_per_second is not None:
        yield _figure(wording.rate(figures.rows_per_second), "rows a second")
    if figures.tokens_per_second is not None:
        yield _figure(wording.rate(figures.tokens_per_second), "tokens a second")
    if figures.padding is not None:
        yield _figure(f"{figures.padding:.3f}", "padded over real tokens")
    said = f", {wording.duration(figures.startup_seconds)} of it start-up" if figures.startup_seconds else ""
    yield _figure(wording.duration(figures.seconds), f"for the last run{said}")


def _figure(value: str, meaning: str, is_bad: bool = False) -> str:
    return f"<div><b{' class=bad' if is_bad else ''}>{escape(value)}</b><span>{escape(meaning)}</span></div>"


def _histogram(name: str, lengths: Histogram) -> str:
    tallest = max(lengths.counts)
    bars = []
    for index, count in enumerate(lengths.counts):
        height = 100 * count / tallest
        first, last = lengths.edges[index], lengths.edges[index + 1] - 1
        tokens = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        meaning = f"{wording.plural(count, 'row')} of {tokens} tokens"
        rectangle = f'<rect x="{index + 0.06:.2f}" y="{100 - height:.2f}" width="0.88" height="{height:.2f}">'
        bars.append(f"{rectangle}<title>{meaning}</title></rect>")
    return (
        f'<svg role="img" aria-label="{escape(name)}" viewBox="0 0 {len(bars)} 100" preserveAspectRatio="none">'
        f"{''.join(bars)}</svg>"
        f'<div class="axis"><span>0</span><span>{lengths.edges[-1]:,} tokens</span></div>'
        f'<p class="note">Median {lengths.median:,.0f}, longest {lengths.largest:,}.</p>'
    )


def _errors(errors_by_kind: Mapping[str, int]) -> Iterable[str]:
    if errors_by_kind:
        yield _section("Errors by kind", "".join(_kinds(errors_by_kind)))


def _kinds(errors_by_kind: Mapping[str, int]) -> Iterable[str]:
    most = max(errors_by_kind.values())
    for kind, count in sorted(errors_by_kind.items(), key=lambda item: -item[1]):
        bar = f'<i style="width: {100 * count / most:.1f}%"></i>'
        yield f'<div class="kind"><span>{escape(kind)}</span>{bar}<span>{count:,}</span></div>'


def _table(rows: list[Row]) -> str:
    columns = chosen_columns(rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(_cell(row, name) for name in columns)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _cell(row: Row, name: str) -> str:
    value, error = row.get(name), row.get("error")
    if value is None and error:
        return f'<td class="bad">{escape(error["kind"])}: {escape(error["message"])}</td>'
    text = wording.value(value)
    shown = text if len(text) <= MAX_CELL_CHARACTERS else text[: MAX_CELL_CHARACTERS - 1] + "…"
    return f"<td>{escape(shown)}</td>"


def _job(report: Report) -> str:
    manifest = report.view.manifest
    facts = {} if manifest is None else {"fingerprint": manifest.fingerprint, "batchloom": manifest.batchloom}
    facts |= {} if manifest is None else dict(manifest.versions)
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    resolved = escape(spec.to_yaml(redacted_values(report.view.job)))
    return f"<table>{rows}</table><details><summary>The job file as resolved</summary><pre>{resolved}</pre></details>"
