"""Everything that `batchloom` prints. Results go to stdout, the rest to stderr.

Progress is one live line on a terminal, elsewhere a plain line every ten seconds. Under `--json` every event and result
is a line of JSON on stdout, and text goes to stderr only. rich respects NO_COLOR, COLUMNS and narrow terminals.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from batchloom.jobs.exit_codes import ExitCode
from batchloom.jobs.reports import wording
from batchloom.jobs.reports.figures import Figures
from batchloom.jobs.reports.view import Row, View
from batchloom.jobs.terminal.progress import Progress
from batchloom.jobs.terminal.progress_line import LiveLine, PlainLines, planned, retrying
from batchloom.jobs.terminal.row_table import RowTable
from batchloom.jobs.terminal.stray_lines import caught
from batchloom.pipelines.ledger.verification import Verification
from batchloom.pipelines.metrics import (
    Event,
    Finished,
    Manifest,
    Planned,
    ReplicasStarting,
    Retrying,
    UnitDone,
    UnitFailed,
)


class Output:
    """Print what a command has to say, as text or as JSON."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._stdout = sys.stdout
        self._out = _console()
        self._err = _console(stderr=True)
        self._progress = Progress()

    # ----------------------------------------------------------------------------------------------- text and JSON

    def say(self, *lines: str) -> None:
        """Print lines of a result; nothing under --json."""
        if not self.as_json:
            for line in lines:
                self._out.print(line, soft_wrap=True)

    def pairs(self, pairs: Mapping[str, str]) -> None:
        """Print names and values, a pair a line; a value may have several lines."""
        column = max(len(name) for name in pairs) + 2
        for name, value in pairs.items():
            for number, line in enumerate(value.splitlines() or [""]):
                self.say(f"{name if number == 0 else '':<{column}}{line}")

    def rows(self, rows: Sequence[Row], columns: Sequence[str]) -> None:
        """Print some columns of some rows as a table; nothing under --json."""
        if rows and not self.as_json:
            self._out.print(RowTable(rows, columns))

    def result(self, value: Mapping[str, Any]) -> None:
        """Print a result as a line of JSON under --json; otherwise nothing."""
        if self.as_json:
            print(json.dumps(value, default=str, ensure_ascii=False), file=self._stdout, flush=True)

    def note(self, text: str) -> None:
        """Print a note to stderr."""
        self._err.print(Text(text, "dim"), soft_wrap=True)

    def relay(self, text: str) -> None:
        """Print another program's output to stderr, unchanged."""
        self._err.print(text, end="", soft_wrap=True)

    def error(self, error: BaseException, code: ExitCode) -> None:
        """Print the message of an error that the user can act on, without a traceback."""
        kind = type(error).__name__
        self.result({"event": "error", "kind": kind, "message": str(error), "exit_code": int(code)})
        self._err.print(Text.assemble(("Error: ", "bold red"), str(error)), soft_wrap=True)

    # ---------------------------------------------------------------------------------------------- a job's progress

    @contextmanager
    def watching(self) -> Iterator[Callable[[Event], None]]:
        """Yield a watcher for `pipelines.run` that shows progress. Meanwhile stdout, where Ray prints, is stderr."""
        progress = self._progress
        with caught(lambda line: console.print(line, soft_wrap=True)) as stderr, redirect_stdout(sys.stderr):
            console = _console(file=stderr)
            if self.as_json:
                yield lambda event: self.result(event_values(event))
            elif console.is_terminal:
                with Live(LiveLine(progress), console=console, refresh_per_second=8, transient=True):
                    yield lambda event: _show(console, progress, event)
            else:
                yield PlainLines(progress, lambda text: console.print(text, soft_wrap=True))

    def finished(self, manifest: Manifest, path: str) -> None:
        """Print how a job ended; `path` is the output as the user wrote it."""
        found = self._progress.num_units_found
        if found == self._progress.num_units:
            figures = {"Units": f"all {found:,} were done already; nothing was computed"}
        else:
            figures = Figures.of(manifest).words()
        self.pairs({"Result": wording.outcome(manifest.totals, manifest.errors_by_kind), **figures, "Output": path})

    def verified(self, found: Verification) -> None:
        """Print the result of a verification."""
        rows, parts = wording.plural(found.num_rows, "row"), wording.plural(found.num_parts, "part")
        counted = "an input that is gone" if found.num_input_rows is None else f"{found.num_input_rows:,} in the input"
        self.say(f"{rows} in {parts}, {counted}; {wording.plural(found.num_errors, 'error row')}.")
        if found.ok:
            self.say("Every input row is there once, and every part is as it was written.")
        else:
            problems = wording.plural(len(found.problems), "problem")
            self.say(f"{problems}:", *[f"  {problem}" for problem in found.problems])
        self.say(*[f"Not compared: {note}" for note in found.notes])

    def view(self, view: View) -> None:
        """Print the totals of an output folder."""
        state = "" if view.manifest else "Not finished. So far: "
        self.say("", f"{state}{wording.outcome(view.totals, view.errors_by_kind)}")


def _console(**changes: Any) -> Console:
    """Return a console that prints plain text: no markup, no emoji codes, no automatic highlighting."""
    return Console(highlight=False, markup=False, emoji=False, **changes)


def _show(console: Console, progress: Progress, event: Event) -> None:
    progress(event)
    match event:
        case Planned():
            console.print(planned(event))
        case Retrying():
            console.print(retrying(event))


def event_values(event: Event) -> dict[str, Any]:
    """Return an event's JSON. `finished` leaves out the parts, each of which had its own `unit_done`."""
    match event:
        case Planned():
            return {"event": "planned", **asdict(event)}
        case Retrying():
            return {"event": "retrying", **asdict(event)}
        case ReplicasStarting():
            return {"event": "replicas_starting"}
        case UnitDone(record):
            return {"event": "unit_done", **asdict(record)}
        case UnitFailed():
            return {"event": "unit_failed", **asdict(event)}
        case Finished(manifest):
            told = {name: getattr(manifest, name) for name in ("fingerprint", "totals", "errors_by_kind", "timing")}
            return {"event": "finished", "output": manifest.job["output"]["path"], **told}
