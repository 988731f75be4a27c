"""The interface of what answers add up to, and tables of counted texts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import pyarrow as pa

from batchloom.jobs.reports.blocks import Block, Cell, Share, Table
from batchloom.jobs.reports.numbers import Tally

MAX_LABELS = 20  # shown; the others together in one line
MAX_TEXTS = 10
SCORES = (0.0, 1.0)


class Answers(ABC):
    """Sums over answered rows, which come table after table."""

    schema: pa.Schema
    """The columns that are read."""

    @abstractmethod
    def add(self, rows: pa.Table) -> None:
        """Add answered rows: the columns of `schema`, and the ledger's."""

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """Yield what there is to say, the most important first."""

    @abstractmethod
    def words(self) -> dict[str, str]:
        """Return the same in few words, by title."""


class Nothing(Answers):
    """Of a task that this version does not know, or an output that does not tell its task."""

    schema = pa.schema([])

    def add(self, rows: pa.Table) -> None:
        """There is nothing to add."""

    def blocks(self) -> Iterator[Block]:
        return iter(())

    def words(self) -> dict[str, str]:
        return {}


def counted(
    title: str,
    tally: Tally,
    more: Callable[[str, int], tuple[Cell, ...]] | None = None,
    unit: str = "rows",
    header: str = "label",
) -> Table:
    """Return counts as a table, the rare ones together. `more` gives the mean score of a text that was counted so
    often."""
    shown = tally.most_common(MAX_LABELS)
    rows: list[tuple[Cell, ...]] = [
        (text, count, Share(count / tally.total), *(more(text, count) if more else ())) for text, count in shown
    ]
    rest = tally.total - sum(count for _, count in shown)
    if rest:
        num_others = len(tally.counts) - len(shown)
        others = f"({num_others:,} others)" if tally.is_exact else "(others)"
        rows.append((others, rest, Share(rest / tally.total), *((None,) if more else ())))
    return Table(title, (header, unit, "share", *(("mean score",) if more else ())), tuple(rows), inexact(tally))


def frequent(title: str, tally: Tally, header: str) -> Table:
    """Return the texts that are there more than once, the most frequent ones."""
    shown = [(text, count) for text, count in tally.most_common(MAX_TEXTS) if count > 1]
    rows = tuple((text, count, Share(count / tally.total)) for text, count in shown)
    note = inexact(tally) or ("" if shown else f"No {header} is there twice.")
    return Table(title, (header, "rows", "share"), rows, note)


def inexact(tally: Tally) -> str:
    """Return what has to be said of counts that are not exact; empty where they are."""
    return "" if tally.is_exact else "There are too many different ones to count all: rare ones may be missing."


def most(tally: Tally) -> str:
    """Return the most frequent texts on a line."""
    shown = tally.most_common(5)
    rest = len(tally.counts) - len(shown)
    words = [f"{count:,} {text}" for text, count in shown]
    return ", ".join([*words, f"{rest:,} others"] if rest else words)
