"""Everything that `batchloom` prints. Results go to stdout, the rest to stderr.

Progress is one live line on a terminal, elsewhere a plain line every ten seconds. Under `--json` every event and result
is a line of JSON on stdout, and text goes to stderr only. rich respects NO_COLOR, COLUMNS and narrow terminals.
"""

import logging
import re
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from batchloom.jobs.exit_codes import ExitCode
from batchloom.jobs.reports import wording
from batchloom.jobs.terminal.stray_lines import caught
from batchloom.jobs.terminal.visible import VisibleConsole, forsake, json_line
from batchloom.models.redaction import redacted, redacted_values

# Every command prints, and few of them run a job: what knows jobs is imported where it is used.
if TYPE_CHECKING:
    from batchloom.jobs.reports.view import Row, View
    from batchloom.pipelines.ledger.manifest import Manifest
    from batchloom.pipelines.ledger.verification import Verification
    from batchloom.pipelines.metrics import Event
    from batchloom.pipelines.watching.progress import Progress

OTHERS_TIME = re.compile(r"\s|\[?\d{4}-\d\d-\d\d ")
MIN_ROOM = 16  # characters beside names: where there are fewer, lines break below them


class Output:
    """Print what a command has to say, as text or as JSON."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._stdout = sys.stdout
        self._out = VisibleConsole()
        self._err = VisibleConsole(stderr=True)
        self._is_log = False

    @cached_property
    def _progress(self) -> "Progress":
        from batchloom.pipelines.watching.progress import Progress

        return Progress()

    # ----------------------------------------------------------------------------------------------- text and JSON

    def say(self, *lines: str) -> None:
        """Print lines of a result; nothing under --json."""
        if not self.as_json:
            for line in lines:
                self._out.print(redacted(line), soft_wrap=True)

    def pairs(self, pairs: Mapping[str, str]) -> None:
        """Print names and values, a pair a line; a value may have several lines."""
        column = max(len(name) for name in pairs) + 2
        for name, value in pairs.items():
            for number, line in enumerate(self._lines(value, column)):
                self.say(f"{name if number == 0 else '':<{column}}{line}")

    def _lines(self, value: str, column: int) -> list[str]:
        """Return the lines of a value that begins at a column: at a terminal they break between words."""
        lines, room = value.splitlines() or [""], self._out.width - column
        if not self._out.is_terminal or room < MIN_ROOM:
            return lines
        return [
            piece
            for line in lines
            for piece in textwrap.wrap(line, room, break_long_words=False, break_on_hyphens=False) or [""]
        ]

    def rows(self, rows: "Sequence[Row]", columns: Sequence[str], whole: Collection[str] = ()) -> None:
        """Print some columns of some rows as a table; nothing under --json. `whole`: those that are never shortened."""
        if rows and not self.as_json:
            from batchloom.jobs.terminal.row_table import RowTable

            self._out.print(RowTable(rows, columns, whole), crop=False)

    def result(self, value: Mapping[str, Any], **data: Any) -> None:
        """Print a result as a line of JSON under --json; otherwise nothing. `data`: rows, which are not redacted."""
        if self.as_json:
            try:
                print(json_line({**redacted_values(value), **data}), file=self._stdout, flush=True)
            except BrokenPipeError:
                forsake(self._stdout)

    def note(self, text: str) -> None:
        """Print a note to stderr."""
        self._err.say(Text(redacted(text), "dim"))

    def warn(self, text: str) -> None:
        """Print a warning of ours."""
        self.note(self._timed(text))

    def _timed(self, line: str) -> str:
        """Return a line as a log has it, where everything that a running job says carries the time. Others' lines may
        have one of their own, or belong to the line before."""
        return f"{_now()}  {line}" if self._is_log and not OTHERS_TIME.match(line) else line

    def relay(self, text: str) -> None:
        """Print another program's output to stderr."""
        self._err.print(redacted(text), end="", soft_wrap=True)

    def error(self, error: BaseException, code: ExitCode) -> None:
        """Print the message of an error that the user can act on, without a traceback."""
        kind, message = type(error).__name__, redacted(str(error))
        self.result({"event": "error", "kind": kind, "message": message, "exit_code": int(code)})
        self._err.say(Text.assemble(("Error: ", "bold red"), message))

    @contextmanager
    def noting_logs(self) -> Iterator[None]:
        """Print warnings of our loggers as notes meanwhile."""
        handler = _Notes(self)
        logging.getLogger("batchloom").addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger("batchloom").removeHandler(handler)

    @contextmanager
    def relaying(self) -> Iterator[Console]:
        """Print what native code writes to stderr meanwhile, without what Ray only informs of. Yield the console."""
        with caught(lambda line: console.print(redacted(self._timed(line)), soft_wrap=True)) as stderr:
            console = VisibleConsole(file=stderr)
            yield console

    # ---------------------------------------------------------------------------------------------- a job's progress

    @contextmanager
    def watching(self) -> "Iterator[Callable[[Event], None]]":
        """Yield a watcher for `pipelines.run` that shows progress. Meanwhile stdout, where Ray prints, is stderr."""
        from rich.live import Live

        from batchloom.jobs.terminal.progress_line import JsonLines, LiveLine, PlainLines

        progress = self._progress
        with self.relaying() as console, redirect_stdout(sys.stderr):
            if self.as_json:
                yield JsonLines(progress, event_values, self.result)
            elif console.is_terminal:
                with Live(LiveLine(progress), console=console, refresh_per_second=8, transient=True):
                    yield lambda event: _show(console, progress, event)
            else:
                self._is_log = True
                yield PlainLines(progress, lambda text: console.print(f"{_now()}  {text}", soft_wrap=True))

    def finished(self, manifest: "Manifest", path: str) -> None:
        """Print how a job ended; `path` is the output as the user wrote it."""
        from batchloom.jobs.reports.figures import Figures

        found = self._progress.num_units_found
        if found == self._progress.num_units:
            anew = self._progress.num_parts_done
            written = f"; {wording.plural(anew, 'part')} {'was' if anew == 1 else 'were'} written anew" if anew else ""
            figures = {"Units": f"all {found:,} were done already; nothing was computed{written}"}
        else:
            figures = Figures.of(manifest).words()
        cure = _advice(manifest)
        errors = {} if cure is None else {"Cure": cure}
        result = wording.outcome(manifest.totals, manifest.errors_by_kind)
        self.pairs({"Result": result, **errors, **figures, "Output": path})

    def verified(self, found: "Verification") -> None:
        """Print the result of a verification."""
        rows, parts = wording.plural(found.num_rows, "row"), wording.plural(found.num_parts, "part")
        counted = "an input that is gone" if found.num_input_rows is None else f"{found.num_input_rows:,} in the input"
        left_out = f", {found.num_left_out:,} left out" if found.num_left_out else ""
        self.say(f"{rows} in {parts}, {counted}{left_out}; {wording.plural(found.num_errors, 'error row')}.")
        if found.ok:
            every = "Every input row that is not left out" if found.num_left_out else "Every input row"
            self.say(f"{every} is there once, and every part is as it was written.")
        else:
            problems = wording.plural(len(found.problems), "problem")
            self.say(f"{problems}:", *[f"  {problem}" for problem in found.problems])
            self.say(" ".join(found.advice))
        self.say(*[f"Not compared: {note}" for note in found.notes])

    def view(self, view: "View") -> None:
        """Print the totals of an output folder."""
        state = "" if view.manifest else "Not finished. So far: "
        self.say("", f"{state}{wording.outcome(view.totals, view.errors_by_kind)}")


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _advice(manifest: "Manifest") -> str | None:
    """Return what to do about most of a job's errors; None where it has none, or is one of a newer version."""
    from batchloom.pipelines.tasks import TASKS
    from batchloom.pipelines.tasks.cures import advice

    task = TASKS.get(manifest.job.get("task", ""))
    settings = manifest.fingerprint_of.get("task_options", {})
    return None if task is None else advice(manifest.errors_by_kind, task.cures, settings)


class _Notes(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.warn(record.getMessage())


def _show(console: Console, progress: "Progress", event: "Event") -> None:
    from batchloom.jobs.terminal.progress_line import planned, retrying
    from batchloom.jobs.terminal.silence import replica_ended, waiting
    from batchloom.pipelines.metrics import Planned, ReplicaEnded, Retrying, Waiting

    progress(event)
    match event:
        case Planned():
            console.print(planned(event))
        case Retrying():
            console.print(retrying(event))
        case Waiting():
            console.print(Text(waiting(event), "yellow"))
        case ReplicaEnded():
            console.print(Text(replica_ended(event), "yellow"))


def event_values(event: "Event") -> dict[str, Any]:
    """Return an event's JSON. `finished` leaves out the parts, each of which had its own `part_done`."""
    from batchloom.pipelines.metrics import (
        Finished,
        PartDone,
        PartFailed,
        Planned,
        ReplicaEnded,
        Replicas,
        ReplicasStarting,
        Retrying,
        UnitDone,
        UnitFailed,
        Waiting,
    )

    match event:
        case Planned():
            return {"event": "planned", **asdict(event)}
        case Retrying():
            return {"event": "retrying", **asdict(event)}
        case ReplicasStarting():
            return {"event": "replicas_starting"}
        case Replicas():
            return {"event": "replicas", **asdict(event)}
        case UnitDone(record, measures):
            return {"event": "unit_done", **asdict(record), "measures": dict(measures)}
        case PartDone(record):
            return {"event": "part_done", **asdict(record)}
        case Waiting():
            return {"event": "waiting", **asdict(event)}
        case ReplicaEnded():
            return {"event": "replica_ended", **asdict(event)}
        case PartFailed():
            return {"event": "part_failed", **asdict(event)}
        case UnitFailed():
            return {"event": "unit_failed", **asdict(event)}
        case Finished(manifest):
            told = {name: getattr(manifest, name) for name in ("fingerprint", "totals", "errors_by_kind", "timing")}
            told["advice"] = _advice(manifest)
            return {"event": "finished", "output": manifest.job["output"]["path"], **told}
