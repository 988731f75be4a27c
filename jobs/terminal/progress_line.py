"""Format progress as one line: a live one for a terminal, plain ones at intervals for a log."""

import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from batchloom.jobs.reports import wording
from batchloom.jobs.terminal.silence import replica_ended, waiting
from batchloom.pipelines.metrics import (
    Event,
    PartDone,
    Planned,
    ReplicaEnded,
    Replicas,
    ReplicasStarting,
    Retrying,
    UnitDone,
    Waiting,
)
from batchloom.pipelines.telemetry.usage import CURES
from batchloom.pipelines.watching.progress import Progress

PLAIN_SECONDS = 10.0  # between two plain lines, so that the log of a long job stays readable
MIN_BAR, MAX_BAR = 8, 36
GAP = 2
SPINNER = 2  # its width, with the space behind it


class LiveLine:
    """A bar, and as many figures as fit the width."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._spinner = Spinner("dots")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        progress, width = self._progress, options.max_width
        if not progress.is_running:
            waited = wording.duration(progress.seconds)
            text = textwrap.shorten(f"{progress.stage} ({waited})", max(1, width - SPINNER), placeholder=" …")
            self._spinner.update(text=Text(text, no_wrap=True))
            yield self._spinner
            return
        text = _fitting(figures(progress), width - MIN_BAR - GAP)
        done, total = progress.done_of
        if len(text) > width - 1 - GAP:
            text = f"{done / max(1, total):.0%}"
        bar_width = min(MAX_BAR, width - len(text) - GAP)
        line = Table.grid(padding=(0, GAP, 0, 0))
        line.add_row(ProgressBar(total, done, width=max(bar_width, 1)), Text(text, no_wrap=True))
        yield line


class PlainLines:
    """Pass a line to `tell` when a job is planned, starts, is quiet and ends, and every PLAIN_SECONDS in between."""

    def __init__(
        self, progress: Progress, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress, self._tell, self._clock = progress, tell, clock
        self._told_at = float("-inf")

    def __call__(self, event: Event) -> None:
        self._progress(event)
        match event:
            case Planned():
                self._tell(planned(event))
            case Retrying():
                self._tell(retrying(event))
            case ReplicasStarting():
                self._tell(self._progress.stage)
            case Waiting():
                self._tell(waiting(event))
            case ReplicaEnded():
                self._tell(replica_ended(event))
            case UnitDone():
                self._tell_figures(is_last=self._progress.num_units_done == self._progress.num_units)
            case Replicas() if self._progress.is_running:  # also while no unit is done
                self._tell_figures(is_last=False)
            case PartDone() if not self._progress.computes:
                self._tell_figures(is_last=self._progress.num_parts_done == self._progress.num_parts)

    def _tell_figures(self, is_last: bool) -> None:
        if is_last or self._clock() - self._told_at >= PLAIN_SECONDS:
            self._told_at = self._clock()
            self._tell("  ".join(figures(self._progress)))


class JsonLines:
    """Pass each event's JSON to `tell`, and every PLAIN_SECONDS what they add up to: rates, time left."""

    def __init__(
        self,
        progress: Progress,
        values: Callable[[Event], Mapping[str, Any]],
        tell: Callable[[Mapping[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress, self._values, self._tell, self._clock = progress, values, tell, clock
        self._told_at = clock()

    def __call__(self, event: Event) -> None:
        self._progress(event)
        self._tell(self._values(event))
        if self._progress.is_running and self._clock() - self._told_at >= PLAIN_SECONDS:
            self._told_at = self._clock()
            self._tell({"event": "progress", **self._progress.values()})


def retrying(event: Retrying) -> str:
    """Return the line that says which rows with errors are computed again."""
    if not event.errors_by_kind:
        others = f" of these kinds, but {wording.kinds(event.other_errors)}" if event.other_errors else " to retry"
        return f"No row has an error{others}"
    rows = wording.plural(sum(event.errors_by_kind.values()), "row")
    return f"{rows} with errors are computed again ({wording.kinds(event.errors_by_kind)})"


def figures(progress: Progress) -> list[str]:
    """Return the figures, most important first: where a terminal is narrow, the last ones are dropped."""
    rows, left = progress.rows_per_second, progress.seconds_left
    parts_failed = f"{wording.plural(progress.num_parts_failed, 'part')} failed" if progress.num_parts_failed else ""
    if not progress.computes:
        told = [f"{progress.num_parts_done:,}/{progress.num_parts:,} parts written anew", parts_failed]
        return [figure for figure in told if figure]
    told = [
        f"{progress.num_rows_done:,}/{progress.num_rows:,} rows",
        f"{wording.duration(left)} left" if left else "",
        _errors(progress),
        f"{wording.plural(progress.num_units_failed, 'unit')} failed" if progress.num_units_failed else "",
        parts_failed,
        f"{wording.rate(rows)} rows/s" if rows else "",
        _tokens(progress),
        _replicas(progress),
        f"{progress.num_units_done:,}/{progress.num_units:,} units{_in_flight(progress)}",
        f"padding {progress.padding:.2f}" if progress.padding else "",
        _starved(progress),
    ]
    return [figure for figure in told if figure]


def _errors(progress: Progress) -> str:
    if not progress.num_errors:
        return ""
    kinds = wording.kinds(progress.errors_by_kind)  # of this run; those of runs before are counted alone
    return wording.plural(progress.num_errors, "error") + (f" ({kinds})" if kinds else "")


def _tokens(progress: Progress) -> str:
    read, written = progress.input_tokens_per_second, progress.output_tokens_per_second
    if not written:
        return f"{wording.rate(read)} tokens/s" if read else ""
    return f"{wording.rate(read)} tokens/s in, {wording.rate(written)} out"


def _replicas(progress: Progress) -> str:
    ready, starting = progress.replicas.num_ready, progress.replicas.num_starting
    if not starting:
        return wording.plural(ready, "replica") if ready else ""
    return f"{wording.plural(ready, 'replica')}, {starting:,} pending"


def _in_flight(progress: Progress) -> str:
    return f", {progress.replicas.num_units:,} in flight" if progress.replicas.num_units else ""


def _starved(progress: Progress) -> str:
    stage = progress.starved_by
    return "" if stage is None else f"starved by {CURES[stage][0]}"


def planned(event: Planned) -> str:
    """Format what there is to do and what is done already."""
    shards, units = wording.plural(event.num_shards, "shard"), wording.plural(event.num_units, "unit")
    work = f"{wording.plural(event.num_rows, 'row')} of {shards} in {units}"
    if not event.num_units_done:
        return work
    return f"{work}; {event.num_rows_done:,} rows in {wording.plural(event.num_units_done, 'unit')} are done already"


def _fitting(figures: list[str], room: int) -> str:
    text = figures[0]
    for figure in figures[1:]:
        if len(text) + GAP + len(figure) > room:
            break
        text += " " * GAP + figure
    return text
