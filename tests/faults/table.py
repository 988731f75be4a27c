"""The table of faults: its kinds, how one is played, and what is written about it."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

from tests.faults.oracle import Verdict
from tests.faults.scene import HUNG, End, Scene

MAX_RUNS = 10  # the command and its repetitions, until it ends well
TRACEBACK = "Traceback (most recent call last)"
HEADER = """
| fault | injected | rows lost | rows twice | rows wrong | verify right | exit code: message |
|---|--:|--:|--:|--:|---|---|
"""
WIDTH = 150  # of a message in the table


class When(Enum):
    """What a fault finds."""

    BEFORE = "before the start"
    RUNNING = "in mid-run"
    UNFINISHED = "between two runs"
    FINISHED = "after the end"


class Where(Enum):
    """Where input and output are, and what computes."""

    DISK = "on disk, with the shared Ray head"
    OWN_RAY = "on disk, with a Ray that the command starts"
    STORE = "on S3 behind the faulty proxy"


class Word(Enum):
    """What verify has to say of an output at rest after the fault, before the command runs again."""

    ORACLE = auto()
    """Yes where the oracle finds every row right and there is a manifest."""
    NO = auto()
    """No: the rows are right, and a file is not as it was written."""
    AS_RUN = auto()
    """The same as the command: yes where it ends well."""


@dataclass(frozen=True)
class Kind:
    """One kind of fault."""

    name: str
    inject: Callable[[Scene], int | None]
    """Injects and returns how many faults it were (None: one)."""
    when: tuple[When, ...]
    where: Where
    verify: Word
    job: Mapping[str, Any]
    """Keys of the job file that this kind needs."""
    prepare: Callable[[Scene], object] | None = None
    """What it needs done to the input before the first run."""

    @property
    def has_own_output(self) -> bool:
        """Whether the output of the undisturbed job is none of this kind's."""
        return self.prepare is not None or "output" in self.job


KINDS: list[Kind] = []


def fault(
    name: str,
    *when: When,
    where: Where = Where.DISK,
    verify: Word = Word.ORACLE,
    prepare: Callable[[Scene], object] | None = None,
    **job: Any,
) -> Callable[[Callable[[Scene], int | None]], Kind]:
    """Add a kind to the table; in mid-run where nothing else is said."""

    def add(inject: Callable[[Scene], int | None]) -> Kind:
        kind = Kind(name, inject, when or (When.RUNNING,), where, verify, job, prepare)
        KINDS.append(kind)
        return kind

    return add


@dataclass
class Line:
    """What the table says of a kind: sums over its rounds."""

    name: str
    num_injected: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    num_right: int = 0
    num_asked: int = 0
    words: list[str] = field(default_factory=list)


def play(kind: Kind, when: When, scene: Scene, line: Line) -> list[str]:
    """Inject a fault and repeat the command until it ends well; return what was not as promised.

    The oracle judges where the command said that all is well, and at the end. Verify is asked after each command, and
    after a fault that finds an output at rest.
    """
    problems: list[str] = []
    said: End | None = None
    if when is not When.RUNNING:
        line.num_injected += _count(kind.inject(scene))
        if when is not When.BEFORE:
            said = scene.verify()
            if kind.verify is not Word.AS_RUN:
                is_yes_right = kind.verify is Word.ORACLE and scene.verdict().is_right and scene.is_closed()
                problems += _judge(said, is_yes_right, line, "after the fault")
    while len(scene.ends) < MAX_RUNS:
        scene.process = scene.start()
        if when is When.RUNNING and not scene.ends:
            line.num_injected += _count(kind.inject(scene))
        scene.ends.append(end := scene.wait(scene.process))
        scene.process = None
        if said is not None and kind.verify is Word.AS_RUN:
            problems += _judge(said, end.code == 0, line, "after the fault, as the command,")
            said = None
        if end.code == 0:
            problems += _wrong_rows(scene, line)
        scene.mend()
        is_yes_right = scene.verdict().is_right and scene.is_closed()
        problems += _judge(scene.verify(), is_yes_right, line, f"after run {len(scene.ends)}")
        if end.code == 0:
            break
    else:
        problems += _wrong_rows(scene, line)
        problems.append(f"the command did not end well in {MAX_RUNS} runs: {scene.ends[-1].printed[-1500:]}")
    if kind.where is Where.STORE:
        line.num_injected += scene.num_bursts()
    problems += [f"run {number} hung" for number, end in enumerate(scene.ends, 1) if end.code == HUNG]
    problems += [f"a traceback: {end.printed[-3000:]}" for end in scene.ends if TRACEBACK in end.printed]
    line.words.append(" then ".join(_once(end.words for end in scene.ends)))
    return problems


def _count(injected: int | None) -> int:
    return 1 if injected is None else injected


def _wrong_rows(scene: Scene, line: Line) -> list[str]:
    verdict = scene.verdict()
    line.verdict += verdict
    return [] if verdict.is_right else [f"{verdict} after exit codes {[end.code for end in scene.ends]}"]


def _judge(said: End, is_yes_right: bool, line: Line, at: str) -> list[str]:
    is_right = (said.code == 0) == is_yes_right
    line.num_asked += 1
    line.num_right += is_right
    problems = [] if is_right else [f"{at} verify should say {'yes' if is_yes_right else 'no'} and says {said.words}"]
    return problems + ([f"verify printed a traceback: {said.printed[-3000:]}"] if TRACEBACK in said.printed else [])


def _once(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


class Table:
    """The lines of all kinds, written as Markdown."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, Line] = {}

    def line(self, name: str) -> Line:
        """Return the line of a kind, empty at first."""
        return self._lines.setdefault(name, Line(name))

    def write(self) -> str:
        """Write the table with its sums, and return it."""
        total = Line("**sum**")
        for line in self._lines.values():
            total.num_injected += line.num_injected
            total.verdict += line.verdict
            total.num_right += line.num_right
            total.num_asked += line.num_asked
        text = HEADER.lstrip() + "".join(map(_row, [*self._lines.values(), total]))
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(text)
        return text


def _row(line: Line) -> str:
    verdict = line.verdict
    verify = "yes" if line.num_right == line.num_asked else "**no**"
    words = "; ".join(_short(word) for word in _once(line.words)[:2])
    return (
        f"| {line.name} | {line.num_injected} | {verdict.lost} | {verdict.twice} | {verdict.wrong} "
        f"| {verify} {line.num_right}/{line.num_asked} | {words} |\n"
    )


def _short(word: str) -> str:
    """Return a message without folders of the tests, and not too long for a table."""
    text = re.sub(r"(s3:/)?(/[\w.-]+)+/", "", word.replace("|", "/"))
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
