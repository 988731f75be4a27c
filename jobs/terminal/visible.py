"""Make characters visible that steer a terminal: data, file names and messages of others must not."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# Control characters but newline and tab, direction marks and overrides, separators, annotations, byte order mark,
# surrogates, invisible tags.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """Return a text with such characters as escapes: ESC becomes \\x1b. Idempotent."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def json_line(value: Any) -> str:
    """Return one line of JSON, with such characters as JSON's escapes."""
    line = json.dumps(value, default=str, ensure_ascii=False)
    return _STEERING.sub(lambda found: json.dumps(found[0])[1:-1], line)


def forsake(stream: IO[str]) -> None:
    """Let a stream whose reader has gone write to nowhere, what is buffered included."""
    with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:  # a stream of a test has no descriptor
        os.dup2(nowhere.fileno(), stream.fileno())


class VisibleConsole(Console):
    """A console that prints plain text only: no markup, no emoji codes, no highlighting, nothing that steers a terminal
    but rich's own codes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def say(self, text: Any) -> None:
        """Print sentences: at a terminal lines break between words, and what is longer than a line (a path, a URL)
        stays whole for whoever copies it. Elsewhere lines do not break."""
        if self.is_terminal:
            self.print(text, overflow="ignore", crop=False)
        else:
            self.print(text, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Go on without a reader: `show | head -1` is no failure, and a job does not end because nobody looks."""
        forsake(self.file)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield the segments of a renderable; every text that is printed passes here, and rich's codes come later."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
