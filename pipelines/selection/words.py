"""The words of an expression: names, numbers, texts, marks, each with its place. It knows no grammar."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from batchloom.pipelines.errors import ConfigError

SHOWN = 60  # characters of a word in a message, at most


class WordKind(Enum):
    """The kinds of words."""

    NAME = "a name"
    QUOTED = "a name in quotes"
    TEXT = "a text"
    NUMBER = "a number"
    MARK = "a mark"
    END = "the end"


@dataclass(frozen=True)
class Word:
    """One word."""

    kind: WordKind
    text: str
    """Of a text or a name in quotes, what is between the quotes."""
    at: int
    """Which character it begins at, from 0."""

    def __str__(self) -> str:
        match self.kind:
            case WordKind.END:
                return "the end"
            case WordKind.TEXT:
                return f"the text {short(self.text)!r}"
        return repr(short(self.text))


class WhereError(ConfigError):
    """An expression that cannot be meant, and where."""

    def __init__(self, text: str, at: int, problem: str) -> None:
        begin = max(0, at - 40)
        end = at + 40
        shown = f"{'...' if begin else ''}{text[begin:end]}{'...' if end < len(text) else ''}"
        place = " " * (at - begin + (3 if begin else 0))
        lines = shown.encode(errors="replace").decode().translate({ord(space): " " for space in "\n\r\t"})
        super().__init__(f"input.where: at character {at + 1}, {problem}\n  {lines}\n  {place}^")


def short(text: str) -> str:
    """Return a text as messages show it."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


_WORD = re.compile(
    r"""\s*(?:
      (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<name>[^\W\d]\w*)
    | '(?P<text>(?:[^']|'')*)'
    | "(?P<quoted>(?:[^"]|"")+)"
    | (?P<mark><>|!=|<=|>=|[=<>(),.+-])
    | (?P<end>$)
    )""",
    re.VERBOSE,
)


def words(text: str) -> Iterator[Word]:
    """Yield the words of a text, and its end. Raises: WhereError where something is no word."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise WhereError(text, error.start, f"{text[error.start]!r} is half of a character.") from None
    place = 0
    while True:
        found = _WORD.match(text, place)
        if found is None or (found.lastgroup == "end" and found.end() < len(text)):
            at = place + len(text[place:]) - len(text[place:].lstrip())
            raise WhereError(text, at, _no_word(text[at:]))
        kind = str(found.lastgroup)
        at = found.start(kind) - (kind in ("text", "quoted"))
        doubled = {"text": "''", "quoted": '""'}.get(kind)
        own = found[kind]
        yield Word(WordKind[kind.upper()], own.replace(doubled, doubled[0]) if doubled else own, at)
        if kind == "end":
            return
        place = found.end()


def _no_word(rest: str) -> str:
    if rest[0] in "'\"":
        return f"a quote {rest[0]} opens and is never closed, or has nothing in it."
    if rest[0].isdigit():
        return "a number goes on with letters. Names that begin with a digit stand in double quotes."
    return f"{rest[0]!r} means nothing here. Texts stand in single quotes, odd names of columns in double quotes."
