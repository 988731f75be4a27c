"""Stray lines are what native code writes to stderr past Python. They are caught: they break a live line in two.

Ray's C++ side announces itself so in every process that connects. The lines that only inform are left out; the others
are handed on, to be printed above the live line.
"""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

STDERR = 2
RAY_INFORMS = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+ I \d+ \d+\] ")
LAST_LINES_SECONDS = 0.5  # a child that inherited the pipe may hold it open for ever


@contextmanager
def caught(tell: Callable[[str], None]) -> Iterator[TextIO]:
    """Yields the true stderr; every line that anybody else writes there goes to `tell`, from a thread of its own."""
    if not _is_stderr(sys.stderr):
        yield sys.stderr  # somebody, a test say, has put another file in its place: that one is nobody else's
        return
    true_stderr = os.dup(STDERR)
    source, sink = os.pipe()
    os.dup2(sink, STDERR)
    os.close(sink)
    reader = threading.Thread(target=_hand_on, args=(source, tell), daemon=True)
    reader.start()
    with open(true_stderr, "w", encoding=sys.stderr.encoding) as file:
        try:
            yield file
        finally:
            sys.stderr.flush()
            os.dup2(true_stderr, STDERR)
            reader.join(LAST_LINES_SECONDS)


def _hand_on(source: int, tell: Callable[[str], None]) -> None:
    with open(source, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not RAY_INFORMS.match(line):
                with suppress(ValueError):  # the terminal's file is closed already
                    tell(line.rstrip("\n"))


def _is_stderr(file: TextIO) -> bool:
    try:
        return file.fileno() == STDERR
    except (OSError, ValueError):
        return False
