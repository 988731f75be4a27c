"""Attempts at one unit: what is tried after its replica died, until the row that kills processes is found.

It knows no Ray and no model. A unit of eight rows whose row 5 kills:

    in flight at two deaths, beside others    from now on it is computed alone: whatever dies then is its own
    dies alone in [0 8)                       computed as [0 4) [4 8)
    dies in [4 8)                             [4 6) [6 8) [0 4): what was never answered comes first
    dies in [4 6)                             [4 5) [5 6) ...
    dies twice in [5 6)                       row 5 gets an error, the model answers the other seven
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

SHARED_DEATHS = 2  # after so many a unit is computed alone
ROW_DEATHS = 2  # a row that was computed alone at so many deaths is what kills: one may be a kill from outside
MAX_KILLERS = 3  # rows of a unit; where more kill, something else is wrong


@dataclass(eq=False)
class Span:
    """Rows `[start, stop)` of a unit's requests, computed together."""

    start: int
    stop: int
    num_deaths: int = 0
    is_answered: bool = False
    """It was computed once to its end; the answers died with the process."""

    def halves(self) -> list["Span"]:
        middle = (self.start + self.stop) // 2
        return [Span(self.start, middle), Span(middle, self.stop)]


@dataclass(frozen=True)
class Attempt:
    """What a replica does with a unit this time."""

    spans: Sequence[tuple[int, int]] | None = None
    """None: all rows at once, beside other units. Otherwise these rows, one span after the other, and nothing beside
    them."""
    killers: Sequence[int] = ()
    """Rows that are answered by an error."""
    failure: str | None = None
    """Why the unit is given up."""


@dataclass
class Attempts:
    """What is known of one unit after its replicas' deaths."""

    num_rows: int
    max_attempts: int
    """Deaths that narrowed nothing, and losses of nodes, after which the unit fails."""
    num_lost: int = 0
    num_deaths: int = 0
    killers: list[int] = field(default_factory=list)
    spans: list[Span] = field(init=False)
    """What is computed, without killers."""

    def __post_init__(self) -> None:
        self.spans = [Span(0, self.num_rows)]

    def next(self) -> Attempt:
        """Return what to try now."""
        if len(self.killers) > MAX_KILLERS:
            return Attempt(failure=f"More than {MAX_KILLERS} of its rows end the process that computes them.")
        if self.num_lost >= self.max_attempts:
            lost = "its replica was" if self.max_attempts == 1 else f"{self.max_attempts} replicas in a row were"
            return Attempt(
                failure=f"While it was computed {lost} lost (limits.max_unit_attempts), and no row of it was found "
                "that ends its process. Look for lost nodes and for a lack of memory on them."
            )
        if self.num_deaths < SHARED_DEATHS:
            return Attempt()
        self.spans.sort(key=lambda span: (span.is_answered, span.start))
        return Attempt([(span.start, span.stop) for span in self.spans], tuple(self.killers))

    def answered(self, start: int) -> None:
        """The span that starts there was computed to its end."""
        for span in self.spans:
            if span.start == start:
                span.is_answered = True

    def lost(self) -> None:
        """A replica was lost by no fault of what it computed."""
        self.num_lost += 1

    def died(self, start: int | None) -> None:
        """The replica's process died; it computed the span that starts there, or, with None, the unit beside others."""
        self.num_lost += 1
        self.num_deaths += 1
        span = next((span for span in self.spans if span.start == start), None)
        if span is None:
            return
        span.num_deaths += 1
        if span.stop - span.start > 1:
            self.spans.remove(span)
            self.spans += span.halves()
            self.num_lost = 0
        elif span.num_deaths == ROW_DEATHS:
            self.spans.remove(span)
            self.killers.append(span.start)
            self.num_lost = 0
