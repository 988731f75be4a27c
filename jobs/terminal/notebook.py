"""Progress in a notebook's cell: one line that is updated in place. It counts nothing.

IPython's own display handles do it: unlike notebook bars of rich and tqdm they need no ipywidgets, and where a frontend
shows no HTML there is a line of text.
"""

import sys
from html import escape
from typing import Any

from batchloom.jobs.terminal.progress import Progress
from batchloom.jobs.terminal.progress_line import figures, planned
from batchloom.pipelines.metrics import Event, Planned


def is_notebook() -> bool:
    """Return whether this process is a notebook's kernel. Nothing is imported for it: a kernel has IPython loaded."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ != "TerminalInteractiveShell"


class NotebookLine:
    """Watches a job's events and shows the figures so far."""

    def __init__(self, progress: Progress) -> None:
        from IPython.display import display

        self._progress = progress
        self._handle: Any = display(self._bundle(), raw=True, display_id=True)

    def __call__(self, event: Event) -> None:
        self._progress(event)
        if isinstance(event, Planned):
            self._progress.stage = planned(event)
        self._handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        """The line as a mimebundle, in HTML and in plain text."""
        progress = self._progress
        text = "  ".join(figures(progress)) if progress.num_units_done else progress.stage
        bar = f'<progress max="{max(1, progress.num_rows)}" value="{progress.num_rows_done}"></progress>'
        return {"text/plain": text, "text/html": f"{bar} {escape(text)}"}
