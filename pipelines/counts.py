"""Counts: what rows of the output add up to, and the records of units and parts, which have them. It knows no rows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from batchloom.pipelines.planning.spans import Range, Span

DEGENERATE_KINDS = ("empty", "copied", "repeating", "truncated")
"""A row is one of the first three at most; `truncated` is counted beside these."""
LOGIT_ERROR, EQUAL_CHOICES = "int8_logit_error", "int8_equal_choices"  # of a replica: pipelines/replicas/probe.py
READY_AT = "replica_ready_at"  # unlike other measures a point in time (seconds since 1970): the model was loaded
NO_SUMS = (READY_AT, LOGIT_ERROR, EQUAL_CHOICES)
"""Measures that are not added up."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What some rows of the output add up to."""

    num_rows: int
    num_errors: int
    num_input_tokens: int
    num_output_tokens: int
    num_truncated_tokens: int
    errors_by_kind: Mapping[str, int] = field(default_factory=dict)
    degenerate: Mapping[str, int] = field(default_factory=dict)
    """Answered rows by DEGENERATE_KINDS, of tasks that generate."""

    @property
    def num_degenerate(self) -> int:
        """Rows that count for `limits.max_degenerate_rate`: all but those that are truncated alone."""
        return sum(count for kind, count in self.degenerate.items() if kind != "truncated")


@dataclass(frozen=True, kw_only=True)
class UnitRecord(Counts):
    """What one unit gave. Its answers are safe."""

    part: str
    """The id of the part that they will be in."""
    ranges: tuple[Range, ...]
    """Which rows of the part."""

    @property
    def num_covered(self) -> int:
        """Rows of the input: answered ones and those that the selection leaves out."""
        return sum(stop - start for start, stop in self.ranges)


@dataclass(frozen=True, kw_only=True)
class PartRecord(Counts):
    """What is known of one part: a file of the output."""

    part: str
    """File name, relative to the output folder."""
    spans: tuple[Span, ...]
    """The rows of shards that it covers, in the order of the file."""
    layout: str
    """What decides its columns beside the answers: JobPlan.layout."""
    bytes: int
    sha256: str
    """Of the file's bytes."""
    version: str = field(default="", compare=False)
    """The file's etag or modification time when it was written or found whole. A copy of the output has others."""

    @property
    def num_covered(self) -> int:
        """Rows of the input: answered ones, which are rows of the file, and those that the selection leaves out."""
        return sum(span.num_rows for span in self.spans)


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sums of counts by kind."""
    sums: dict[str, int] = {}
    for own in counts:
        for kind, count in own.items():
            sums[kind] = sums.get(kind, 0) + count
    return dict(sorted(sums.items()))
