"""Capture what native code writes to file descriptor 2, past sys.stderr: it would break the live line in two.

Ray's C++ core logs there in every process that connects, and Ray's Python prints what other nodes tell, in colours.
Dropped are lines of level I (info), those on tasks that Ray tries again, which come by dozens where a node is lost,
stacks of its servers, what it quotes of a dead node's log, indented: two hundred lines of counters, and of its pages
about a lack of memory all but the first line. All others are passed on, without colours, to be printed above the live
line.
"""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

STDERR = 2
_AT = r"\[\d{4}-\d\d-\d\d [\d:,]+"
RAY_INFORMS = re.compile(
    rf"{_AT} I \d+ \d+\] |\s+({_AT} [IW] \d+ \d+\] |\[state-dump\]|- (objects|bytes) [a-z ]+: \d+$)|\s*$"
    r"|\(raylet[^)]*\) Task \S+ failed\. There are \w+ retries remaining, so the task will be retried\."
    r"|\s*\S+\(\S*\+0x[0-9a-f]+\) \[0x[0-9a-f]+\]$"  # a frame of a stack; Ray's logs have it
)
MEMORY_PAGE = re.compile(r"\(raylet[^)]*\) Task \S+ failed due to oom\.")
MEMORY_PAGE_END = "Refer to the documentation on how to address the out of memory issue"
MEMORY_PAGE_LINES = 100  # at most, where another version of Ray ends it otherwise
COLOURS = re.compile(r"\x1b\[[\d;]*m")
LAST_LINES_SECONDS = 0.5  # to wait for the pipe's end: a child process that inherited it may never close it


@contextmanager
def caught(tell: Callable[[str], None]) -> Iterator[TextIO]:
    """Yield the real stderr; pass every line that anything else writes to descriptor 2 to `tell`, from a thread."""
    if not _is_stderr(sys.stderr):
        yield sys.stderr  # replaced by the caller, a test for example: native code does not write there
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
    num_to_drop = 0
    with open(source, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            text = COLOURS.sub("", line.rstrip("\n"))
            if num_to_drop:
                num_to_drop = 0 if text.startswith(MEMORY_PAGE_END) else num_to_drop - 1
                continue
            if MEMORY_PAGE.match(text):
                num_to_drop = MEMORY_PAGE_LINES
            if not RAY_INFORMS.match(text):
                with suppress(ValueError):  # the real stderr is closed: this line came after LAST_LINES_SECONDS
                    tell(text)


def _is_stderr(file: TextIO) -> bool:
    try:
        return file.fileno() == STDERR
    except (OSError, ValueError):
        return False
