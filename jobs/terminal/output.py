"""Everything that `batchloom` prints, and the only file that prints. Results go to stdout, the rest to stderr.

On a terminal progress is one live line, elsewhere a plain line now and then. Under `--json` every event and result is a
line of JSON on stdout, and words go to stderr only. NO_COLOR, COLUMNS and narrow terminals are respected (by rich).
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
from batchloom.jobs.terminal.progress_line import LiveLine, PlainLines, planned
from batchloom.jobs.terminal.row_table import RowTable
from batchloom.jobs.terminal.stray_lines import caught
from batchloom.pipelines.ledger.verification import Verification
from batchloom.pipelines.metrics import Event, Finished, Manifest, Planned, ReplicasStarting, UnitDone


class Output:
    """What a command says, in words or as JSON."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._stdout = sys.stdout
        self._out = _console()
        self._err = _console(stderr=True)
        self._progress = Progress()

    # ---------------------------------------------------------------------------------------------- words and JSON

    def say(self, *lines: str) -> None:
        """Lines of a result; nothing under --json."""
        if not self.as_json:
            for line in lines:
                self._out.print(line, soft_wrap=True)

    def pairs(self, pairs: Mapping[str, str]) -> None:
        """Names and values under each other; a value may have several lines."""
        column = max(len(name) for name in pairs) + 2
        for name, value in pairs.items():
            for number, line in enumerate(value.splitlines() or [""]):
                self.say(f"{name if number == 0 else '':<{column}}{line}")

    def rows(self, rows: Sequence[Row], columns: Sequence[str]) -> None:
        """Some columns of some rows."""
        if rows and not self.as_json:
            self._out.print(RowTable(rows, columns))

    def result(self, value: Mapping[str, Any]) -> None:
        """A result under --json; nothing in words."""
        if self.as_json:
            print(json.dumps(value, default=str, ensure_ascii=False), file=self._stdout, flush=True)

    def note(self, text: str) -> None:
        """Something to know on the way."""
        self._err.print(Text(text, "dim"), soft_wrap=True)

    def relay(self, text: str) -> None:
        """What another program says, as it comes."""
        self._err.print(text, end="", soft_wrap=True)

    def error(self, error: BaseException, code: ExitCode) -> None:
        """An error that a person can act on: its message and no traceback."""
        kind = type(error).__name__
        self.result({"event": "error", "kind": kind, "message": str(error), "exit_code": int(code)})
        self._err.print(Text.assemble(("Error: ", "bold red"), str(error)), soft_wrap=True)

    # ---------------------------------------------------------------------------------------------- a job's progress

    @contextmanager
    def watching(self) -> Iterator[Callable[[Event], None]]:
        """A watcher for `pipelines.run` that shows how far the job is. What Ray prints to stdout becomes stderr."""
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
        """How a job ended; `path` is the output as the person wrote it."""
        found = self._progress.num_units_found
        if found == self._progress.num_units:
            figures = {"Units": f"all {found:,} were done already; nothing was computed"}
        else:
            figures = Figures.of(manifest).words()
        self.pairs({"Result": wording.outcome(manifest.totals, manifest.errors_by_kind), **figures, "Output": path})

    def verified(self, found: Verification) -> None:
        """What a recount came to."""
        rows, parts = wording.plural(found.num_rows, "row"), wording.plural(found.num_parts, "part")
        counted = "an input that is gone" if found.num_input_rows is None else f"{found.num_input_rows:,} in the input"
        self.say(f"{rows} in {parts}, {counted}; {wording.plural(found.num_errors, 'error row')}.")
        if found.ok:
            self.say("Every input row is there once, and every part is as it was written.")
        else:
            problems = wording.plural(len(found.problems), "problem")
            self.say(f"{problems}:", *[f"  {problem}" for problem in found.problems])

    def view(self, view: View) -> None:
        """What an output folder holds."""
        state = "" if view.manifest else "Not finished. So far: "
        self.say("", f"{state}{wording.outcome(view.totals, view.errors_by_kind)}")


def _console(**changes: Any) -> Console:
    """A console that takes what it prints for text: no markup, no emoji codes, no colours by guess."""
    return Console(highlight=False, markup=False, emoji=False, **changes)


def _show(console: Console, progress: Progress, event: Event) -> None:
    progress(event)
    if isinstance(event, Planned):
        console.print(planned(event))


def event_values(event: Event) -> dict[str, Any]:
    """An event as JSON says it. The finished one leaves out the parts, which `unit_done` has told one by one."""
    match event:
        case Planned():
            return {"event": "planned", **asdict(event)}
        case ReplicasStarting():
            return {"event": "replicas_starting"}
        case UnitDone(record):
            return {"event": "unit_done", **asdict(record)}
        case Finished(manifest):
            told = {name: getattr(manifest, name) for name in ("fingerprint", "totals", "errors_by_kind", "timing")}
            return {"event": "finished", "output": manifest.job["output"]["path"], **told}
