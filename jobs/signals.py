"""Signals: the first one ends a command in order, with its messages; a second one ends it at once.

Whatever becomes of the first one on its way, the command's end is that signal's: Ray and other libraries turn the
exception into one of theirs, or must ignore it.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from batchloom.jobs.exit_codes import ExitCode

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

EXIT_CODES = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
    signal.SIGHUP: ExitCode.HUNG_UP,
}
AGAIN_SECONDS = 0.05  # until the code that ignored a Stop has returned


class Stop(KeyboardInterrupt):
    """A signal came; libraries take it for Ctrl-C. Its message is what the command says at its end."""

    def __init__(self, code: ExitCode, words: str | None = None) -> None:
        super().__init__(words or f"Stopped: {code.meaning}.")
        self.code = code


class Handler:
    """Raise Stop for the first signal, and end the process for the second. Ray's processes see that it is gone."""

    def __init__(self) -> None:
        self.code: ExitCode | None = None
        """Of the signal that came."""
        self.is_over = False
        """True where nothing is left to end in order."""

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        code = EXIT_CODES[signal.Signals(number)]
        if self.is_over or self.code is not None:
            os._exit(code)
        self.code = code
        raise Stop(code)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End the `with` block by the signal that came, if one did. Raises: Stop then, in place of anything else."""
        try:
            yield
        except BaseException as error:
            if self.code is None or isinstance(error, Stop):
                raise
            raise Stop(self.code) from error
        if self.code is not None:
            raise Stop(self.code)

    def ignored(self, unraisable: "UnraisableHookArgs") -> None:
        """Raise a Stop again that came in a finalizer or a callback, where Python ignores exceptions."""
        if isinstance(unraisable.exc_value, Stop):
            threading.Timer(AGAIN_SECONDS, self._again).start()
        else:
            sys.__unraisablehook__(unraisable)

    def _again(self) -> None:
        number = next(number for number, code in EXIT_CODES.items() if code is self.code)
        self.code = None
        os.kill(os.getpid(), number)


def install(handler: Handler) -> dict[signal.Signals, Any]:
    """Have the process's signals handled so, and return what handled them before. `nohup` keeps SIGHUP ignored."""
    sys.unraisablehook = handler.ignored
    is_kept = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return {
        number: signal.signal(number, handler) for number in EXIT_CODES if not (is_kept and number is signal.SIGHUP)
    }


@contextmanager
def handled() -> Iterator[None]:
    """Handle signals so inside the `with` block, where this is the main thread: no other can. Blocks may be nested.

    Raises: Stop after a signal, in place of whatever ends the block.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, Handler):
        with handler.ending():
            yield
        return
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler, hook = Handler(), sys.unraisablehook
    before = install(handler)
    try:
        with handler.ending():
            yield
    finally:
        sys.unraisablehook = hook
        for number, previous in before.items():
            signal.signal(number, previous)


def end_process(code: int) -> None:
    """End the process at once: the interpreter's own end waits for threads, and can have another exit code.

    Seen: threads of libraries that were still there ended it with SIGABRT ("terminate called without an active
    exception").
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a terminal that is closed
            stream.flush()
    os._exit(code)
