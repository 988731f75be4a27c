"""Failures are the units of a run that could not be read, computed or written, and parts that could not be assembled.

The job goes on without them, and says so at its end: it is not closed, and the same command computes them alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from batchloom.pipelines.errors import JobError
from batchloom.pipelines.metrics import PartFailed, UnitFailed

MAX_CAUSES_IN_A_ROW = 20  # different ones, without a finished unit between them: it is not the units that are at fault
SHOWN_GROUPS = 10
SHOWN_UNITS = 3  # of each group


@dataclass
class Failures:
    """Counts failed units by what they failed of."""

    failed: list[UnitFailed] = field(default_factory=list)
    causes_in_a_row: set[tuple[str, str]] = field(default_factory=set)
    """Since a unit was last done: (shard, reason). A shard that has changed is one cause, however many units it has."""

    def done(self) -> None:
        """Called for every finished unit, and for every part."""
        self.causes_in_a_row.clear()

    def add(self, failure: UnitFailed) -> None:
        """Add a failed unit. Raises: JobError where so many fail one after the other that none will succeed."""
        self.failed.append(failure)
        self.causes_in_a_row.add((failure.shard, failure.reason))
        if len(self.causes_in_a_row) >= MAX_CAUSES_IN_A_ROW:
            raise JobError(self._message("The job was stopped: units failed one after the other, and none was done."))

    def check(self, lost: Sequence[str] = ()) -> None:
        """Raises: JobError where any unit failed. `lost`: parts that were written and are gone."""
        if not self.failed:
            return
        others = "All others are done."
        if lost:
            names = ", ".join(lost[:SHOWN_UNITS]) + (", ..." if len(lost) > SHOWN_UNITS else "")
            others = f"And {len(lost)} finished parts were removed or replaced meanwhile ({names})."
        raise JobError(self._message(others))

    def _message(self, others: str) -> str:
        groups: dict[tuple[str, str], list[UnitFailed]] = {}
        for failure in self.failed:
            groups.setdefault((failure.shard, failure.reason), []).append(failure)
        largest = sorted(groups.values(), key=lambda group: (-len(group), group[0].shard, group[0].start))
        lines = [f"{_count(self.failed)} failed. {others}"]
        lines += [f"  {_count(group)} of {_named(group)}: {group[0].reason}" for group in largest[:SHOWN_GROUPS]]
        hidden = [failure for group in largest[SHOWN_GROUPS:] for failure in group]
        lines += [f"  and {_count(hidden)} for other reasons"] if hidden else []
        kept = "Finished parts are kept, and the output is not closed: the same command computes what is missing."
        return "\n".join([*lines, kept])


def _count(failures: Sequence[UnitFailed]) -> str:
    num_parts = sum(isinstance(failure, PartFailed) for failure in failures)
    counts = {"unit": len(failures) - num_parts, "part": num_parts}
    return " and ".join(f"{count} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items() if count)


def _named(group: list[UnitFailed]) -> str:
    rows = [f"{failure.start}-{failure.stop}" for failure in sorted(group, key=lambda failure: failure.start)]
    more = ", ..." if len(rows) > SHOWN_UNITS else ""
    return f"{group[0].shard} (rows {', '.join(rows[:SHOWN_UNITS])}{more})"
