"""The report on an output: answers first, then samples, errors, speed, lengths, and what was run."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from batchloom.jobs import spec
from batchloom.jobs.reports import wording
from batchloom.jobs.reports.analysis.errors import degenerate_blocks, error_blocks
from batchloom.jobs.reports.analysis.samples import samples_of
from batchloom.jobs.reports.analysis.scan import Scan
from batchloom.jobs.reports.analysis.speed import speed_blocks
from batchloom.jobs.reports.blocks import Block, Cell, Facts, Histogram, Section, Share, Source
from batchloom.jobs.reports.figures import Figures
from batchloom.jobs.reports.numbers import histogram
from batchloom.jobs.reports.view import View
from batchloom.models.redaction import redacted, redacted_values
from batchloom.pipelines.config import InputConfig, JobConfig
from batchloom.pipelines.counts import DEGENERATE_KINDS
from batchloom.pipelines.errors import ConfigError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = 2.5e11  # seconds since then: what datetime can say; a damaged manifest may have any number


@dataclass(frozen=True)
class Report:
    """An output, and what rows of it add up to."""

    view: View
    scan: Scan
    sections: tuple[Section, ...]
    now: datetime
    """When it was made."""

    @staticmethod
    def of(view: View, job: JobConfig | None = None, price_per_hour: float | None = None) -> "Report":
        """Read an output. `job`: with the credentials that its record has not; None takes the record's.
        `price_per_hour`: of all machines that the job held."""
        scan = Scan.of(view)
        sections = tuple(section for section in _sections(view, scan, job, price_per_hour) if section.blocks)
        return Report(view, scan, sections, datetime.now(UTC))

    @property
    def title(self) -> str:
        return f"{self.view.job['task']} with {redacted(self.view.job['model']).rstrip('/').rsplit('/', 1)[-1]}"

    @property
    def state(self) -> str:
        return "finished" if self.view.manifest else "not finished: this is what is there now"

    def headline(self) -> dict[str, Cell]:
        """Return the figures that stand above all others."""
        totals = self.view.totals
        shown: dict[str, Cell] = {"rows": totals["rows"], "answered": totals["ok"], "errors": totals["errors"]}
        if totals["errors"]:
            shown["of the rows are errors"] = Share(totals["errors"] / totals["rows"])
        if totals["left_out"]:
            shown["rows left out by the selection"] = totals["left_out"]
        shown |= {"tokens read": totals["input_tokens"]}
        if totals["output_tokens"]:
            shown["tokens written"] = totals["output_tokens"]
        if self.figures:
            shown["for the last run"] = wording.duration(self.figures.seconds)
        return shown

    @property
    def figures(self) -> Figures | None:
        """Speed and padding; None until the job is finished."""
        return Figures.of(self.view.manifest) if self.view.manifest else None

    def words(self) -> dict[str, str]:
        """Return the most important of it for a terminal."""
        totals, degenerate = self.view.totals, self.view.records.degenerate()
        odd = ", ".join(f"{degenerate[kind]:,} {kind}" for kind in DEGENERATE_KINDS if degenerate.get(kind))
        return {
            "Job": f"{self.view.job['task']}, {self.view.job['model']}",
            "State": "finished" if self.view.manifest else "not finished",
            "Result": wording.outcome(totals, self.view.errors_by_kind),
            **self.scan.answers.words(),
            **({"Degenerate": odd} if odd else {}),
            "Tokens": f"{totals['input_tokens']:,} read, {totals['output_tokens']:,} written",
            **(self.figures.words() if self.figures else {}),
            **{name: _words(lengths) for name, lengths in self.histograms().items()},
        }

    def values(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {
            "finished": self.view.manifest is not None,
            "totals": dict(self.view.totals),
            "errors_by_kind": dict(self.view.errors_by_kind),
            "degenerate": self.view.records.degenerate(),
            "timing": dict(self.view.manifest.timing) if self.view.manifest else None,
            "num_rows_read": self.scan.num_rows,
            "lengths": {name: asdict(lengths) for name, lengths in self.histograms().items()},
            "sections": [
                {"title": one.title, "note": one.note, "blocks": [_values(block) for block in one.blocks]}
                for one in self.sections
            ],
        }

    def histograms(self) -> dict[str, Histogram]:
        """Return the lengths of answered rows by title; tasks that write no tokens have none of output lengths."""
        return _lengths(self.scan)


def _sections(view: View, scan: Scan, job: JobConfig | None, price_per_hour: float | None) -> Iterator[Section]:
    counted = _counted_in(view, scan)
    good, wrong = samples_of(view, job.input if job else _recorded(view), scan)
    yield Section("Answers", (*degenerate_blocks(view), *scan.answers.blocks()), counted)
    yield Section("Samples", (good,) if good.rows else ())
    yield Section("Errors", (*error_blocks(view, scan), *((wrong,) if wrong.rows else ())))
    yield Section("Speed", tuple(speed_blocks(view.manifest, price_per_hour)) if view.manifest else ())
    yield Section("Lengths", (*_lengths(scan).values(), *_cut(view, scan)), counted)
    yield Section("The job", tuple(_job(view)))


def _recorded(view: View) -> InputConfig | None:
    """Return the input as the output records it; None where it does not, or as another version does."""
    try:
        return spec.from_record(view.job, view.store.url).input
    except ConfigError:
        return None


def _counted_in(view: View, scan: Scan) -> str:
    """Say which rows were counted, where they are not all."""
    num_rows, num_parts = view.totals["rows"], len(view.records)
    if scan.num_rows == num_rows:
        return ""
    read = wording.plural(scan.num_rows, "row")
    return f"Counted in {read} of {scan.num_parts:,} of {num_parts:,} parts, spread evenly; all have {num_rows:,} rows."


def _lengths(scan: Scan) -> dict[str, Histogram]:
    named = {"Input lengths": scan.input_lengths, "Output lengths": scan.output_lengths}
    found = {name: histogram(name, "tokens", lengths) for name, lengths in named.items()}
    return {name: one for name, one in found.items() if one is not None and one.largest > 0}


def _cut(view: View, scan: Scan) -> Iterator[Block]:
    if view.totals["truncated_tokens"]:
        cut = {"tokens cut off the input": view.totals["truncated_tokens"]}
        of_rows = {
            "rows that were cut": scan.num_rows_truncated,
            "share of rows": Share(scan.num_rows_truncated / max(scan.num_rows, 1)),
        }
        yield Facts({**cut, **of_rows})


def _job(view: View) -> Iterator[Block]:
    job, manifest = redacted_values(view.job), view.manifest
    facts: dict[str, Cell] = {"task": job["task"], "model": job["model"], "output": redacted(view.store.url)}
    facts["parts"] = len(view.records)
    facts["bytes"] = wording.size(view.totals["bytes"])
    if manifest is not None:
        started = manifest.timing.get("started")
        if started is not None:
            facts["the last run began"] = moment(started)
            facts["the last run ended"] = moment(started + manifest.timing["wall_seconds"])
        facts |= dict(manifest.machine)
        facts |= {"batchloom": manifest.batchloom, **manifest.versions, "fingerprint": manifest.fingerprint}
    yield Facts(facts)
    yield Source("The job file as resolved", spec.to_yaml(job))


def moment(seconds: float) -> str:
    """Format seconds since 1970: `2026-11-26 21:40 UTC`."""
    return (EPOCH + timedelta(seconds=min(max(seconds, 0.0), LATEST))).strftime("%Y-%m-%d %H:%M UTC")


def _words(lengths: Histogram) -> str:
    return f"median {lengths.median:,.0f} tokens, longest {lengths.largest:,.0f}"


def _values(block: Block) -> Mapping[str, Any]:
    return {"kind": type(block).__name__.lower(), **asdict(block)}
