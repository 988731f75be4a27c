"""What went wrong: rows with errors by kind and what helps, and answers that a person would not want."""

from collections.abc import Iterator

from batchloom.jobs.reports.analysis.scan import Scan
from batchloom.jobs.reports.blocks import Bars, Block, Share, Table
from batchloom.jobs.reports.view import View
from batchloom.pipelines.counts import DEGENERATE_KINDS
from batchloom.pipelines.tasks import TASKS
from batchloom.pipelines.tasks.cures import advice

MEANING = {
    "empty": "nothing but white space",
    "copied": "the source itself",
    "repeating": "the same words again and again at the end",
    "truncated": "ended by a length, not by the model",
}


def degenerate_blocks(view: View) -> Iterator[Block]:
    """Yield how many answers of all parts are not what a person would want."""
    found, answered = view.records.degenerate(), view.totals["ok"]
    if found and answered:
        counts = [(kind, found.get(kind, 0)) for kind in DEGENERATE_KINDS]
        rows = tuple((f"{kind}: {MEANING[kind]}", count, Share(count / answered)) for kind, count in counts)
        yield Table("Answers to look at", ("kind", "rows", "share"), rows)


def error_blocks(view: View, scan: Scan) -> Iterator[Block]:
    """Yield rows with errors by kind, and for each kind what it is and what helps."""
    counts, total = view.errors_by_kind, view.totals["rows"]
    if not counts:
        return
    task = TASKS.get(view.job["task"])
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    yield Bars(
        Table(
            "Errors by kind",
            ("kind", "rows", "share of all rows"),
            tuple((kind, count, Share(count / total)) for kind, count in ordered),
        ),
        "rows",
    )
    rows = []
    for kind, _ in ordered:
        stage, message = scan.messages.get(kind, (None, None))
        cure = advice({kind: 1}, task.cures if task else (), view.settings) or ""
        rows.append((kind, stage, message, cure.removeprefix(f"{kind}: ")))
    yield Table(
        "What they are, and what helps", ("kind", "stage", "the first one's message", "what helps"), tuple(rows)
    )
