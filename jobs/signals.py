"""Signals: the first SIGINT or SIGTERM ends a command in order, with its messages; a second one ends it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from batchloom.jobs.exit_codes import ExitCode

EXIT_CODES = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}


class Stop(KeyboardInterrupt):
    """A signal came; libraries take it for Ctrl-C."""

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code.meaning)
        self.code = code


class Handler:
    """Raise Stop for the first signal, and end the process for the second. Ray's processes see that it is gone."""

    def __init__(self) -> None:
        self.code: ExitCode | None = None
        """Of the signal that came."""

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        code = EXIT_CODES[signal.Signals(number)]
        if self.code is not None:
            os._exit(code)
        self.code = code
        raise Stop(code)


@contextmanager
def handled() -> Iterator[Handler]:
    """Handle signals so inside the `with` block, where this is the main thread: no other can. Blocks may be nested."""
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, Handler):
        yield handler
        return
    handler = Handler()
    if threading.current_thread() is not threading.main_thread():
        yield handler
        return
    before = {number: signal.signal(number, handler) for number in EXIT_CODES}
    try:
        yield handler
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
