"""The manifest closes a job: what was asked, what it gave, and which parts hold it. It reads and writes no store."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from batchloom.pipelines.ledger.register import Register
from batchloom.pipelines.records import from_json

TIMING = ("wall_seconds", "units_computed", "units_resumed")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A manifest without its parts, as it is in JSON."""

    batchloom: str
    job: Mapping[str, Any]
    """As resolved, without credentials."""
    fingerprint: str
    fingerprint_of: Mapping[str, Any]
    """What the fingerprint is a hash of."""
    layout: str
    layout_of: Mapping[str, Any]
    """What the layout is a hash of: columns that are kept, format, compression."""
    versions: Mapping[str, str]
    retries: tuple[Mapping[str, Any], ...] = ()
    """Other options with which rows with errors were computed again: `task_options`; `kinds` of errors, none for all;
    `fingerprint`, that of a job that has these options from its start."""
    totals: Mapping[str, int]
    errors_by_kind: Mapping[str, int]
    degenerate: Mapping[str, int] = field(default_factory=dict)
    """Answered rows by DEGENERATE_KINDS; empty for tasks that do not generate."""
    timing: Mapping[str, float]
    """Seconds and counts of the run that finished the job."""
    course: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """How far that run was at some moments: `seconds` since its start, and `rows`, `input_tokens` and `output_tokens`
    that it had answered until then."""
    machine: Mapping[str, str] = field(default_factory=dict)
    """Where it ran, in words."""
    replicas: tuple[Mapping[str, Any], ...] = ()
    """Of that run, those that waited longest for units, 16 at most: `node`, `process_id`, and seconds as in
    pipelines/telemetry/usage.py. The sums of all are in `timing`."""
    agreement: Mapping[str, float] = field(default_factory=dict)
    """Of int8 with float32, as the start-up probe of that run found, the worst of its replicas: `int8_logit_error` is
    how far logits are off as a share of their size, `int8_equal_choices` the share of greedy tokens or labels that are
    the same. Empty in other dtypes, and where engine.probe is false."""
    parts_sha256: str
    """Of the file with the records of the parts."""

    @staticmethod
    def read(values: Any) -> "Summary":
        """Read what `Manifest.summary` made. Raises: ValueError where a value is missing or of another type."""
        summary = from_json(Summary, values)
        for name, needed in (("totals", Register.of([]).totals()), ("timing", TIMING)):
            for missing in (one for one in needed if one not in getattr(summary, name)):
                raise ValueError(f"{name}.{missing} is missing")
        return summary


@dataclass(frozen=True, kw_only=True)
class Manifest(Summary):
    """The account of a finished job: every input row is in exactly one of its parts."""

    parts: Register = field(repr=False)
    """The record of each part, in the order of their rows. In a file of its own."""

    @staticmethod
    def of(summary: Summary, parts: Register) -> "Manifest":
        return Manifest(**vars(summary), parts=parts)

    def summary(self) -> dict[str, Any]:
        """Return all but the parts, for JSON."""
        return {one.name: getattr(self, one.name) for one in fields(Summary)}
