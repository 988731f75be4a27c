"""Progress in a notebook's cell: a bar and one line, updated in place.

It uses IPython's display handles: the notebook bars of rich and tqdm need ipywidgets, these need nothing, and a
frontend that shows no HTML shows the line as text.
"""

import sys
import time
from collections.abc import Callable
from html import escape
from typing import Any

from batchloom.jobs.terminal.progress_line import figures, planned
from batchloom.jobs.terminal.silence import replica_ended, waiting
from batchloom.models.redaction import redacted
from batchloom.pipelines.metrics import Event, Finished, PartDone, Planned, ReplicaEnded, Replicas, UnitDone, Waiting
from batchloom.pipelines.watching.progress import Progress

UPDATE_SECONDS = 0.25  # between two updates: small units would otherwise send the browser hundreds a second


def is_notebook() -> bool:
    """Return whether this process is a notebook's kernel, which has imported IPython; nothing is imported for it."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    at_terminal = any(kind.__name__ == "TerminalInteractiveShell" for kind in type(shell).__mro__)
    return shell is not None and not at_terminal


class NotebookLine:
    """Watch a job's events and display its progress."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        from IPython.display import display

        self._progress, self._clock = progress, clock
        self._shown_at = float("-inf")
        self._handle: Any = display(self._bundle(progress.stage), raw=True, display_id=True)

    def __call__(self, event: Event) -> None:
        self._progress(event)
        match event:
            case Planned():
                text = planned(event)
            case UnitDone() | PartDone() | Finished():
                text = "  ".join(figures(self._progress))
            case Replicas() if self._progress.is_running:
                text = "  ".join(figures(self._progress))
            case Waiting():
                text = waiting(event)
            case ReplicaEnded():
                text = replica_ended(event)
            case _:
                text = self._progress.stage
        if not isinstance(event, UnitDone | PartDone) or self._clock() - self._shown_at >= UPDATE_SECONDS:
            self._shown_at = self._clock()
            self._handle.update(self._bundle(text), raw=True)

    def _bundle(self, text: str) -> dict[str, str]:
        """Return the line as a mimebundle, in HTML and in plain text."""
        progress, text = self._progress, redacted(text)
        done, total = progress.done_of
        bar = f'<progress max="{max(1, total)}" value="{done}"></progress>'
        return {"text/plain": text, "text/html": f"{bar} {escape(text)}"}
