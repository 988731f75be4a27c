"""The figures of a job: one record a unit, their sums, and the events that a caller can watch. It knows no rows."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

READY_AT = "replica_ready_at"  # unlike other measures a point in time (seconds since 1970): the model was loaded


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """The manifest's entry for one part."""

    part: str
    """File name, relative to the output folder."""
    shard: str
    """Input file, relative to the input root."""
    start: int
    stop: int
    """Rows `[start, stop)` of the shard."""
    num_rows: int
    num_errors: int
    num_input_tokens: int
    num_output_tokens: int
    num_truncated_tokens: int
    bytes: int
    sha256: str
    """Of the part's bytes."""
    errors_by_kind: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """The job is planned: how much there is to do and how much is done already. Nothing is started yet."""

    num_shards: int
    num_units: int
    num_rows: int
    num_units_done: int
    num_rows_done: int


@dataclass(frozen=True)
class ReplicasStarting:
    """Ray is about to start, and then replicas, which load their model. Left out where nothing is pending."""


@dataclass(frozen=True)
class UnitDone:
    """A part is written."""

    record: UnitRecord


@dataclass(frozen=True)
class UnitFailed:
    """A unit could not be read, computed or written. The job goes on without it and ends with a JobError."""

    shard: str
    start: int
    stop: int
    """Rows `[start, stop)` of the shard."""
    reason: str


@dataclass(frozen=True)
class Finished:
    """The manifest is written."""

    manifest: "Manifest"


Event = Planned | ReplicasStarting | UnitDone | UnitFailed | Finished


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The account of a finished job: every input row is in exactly one of its parts.

    `job` is the job as resolved, `fingerprint_of` what the fingerprint is a hash of, `timing` seconds and counts of the
    run that finished the job.
    """

    batchloom: str
    job: Mapping[str, Any]
    fingerprint: str
    fingerprint_of: Mapping[str, Any]
    versions: Mapping[str, str]
    totals: Mapping[str, int]
    errors_by_kind: Mapping[str, int]
    timing: Mapping[str, float]
    parts: tuple[UnitRecord, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Manifest":
        parts = tuple(UnitRecord(**part) for part in values["parts"])
        return Manifest(**{**values, "parts": parts})


def totals(records: Iterable[UnitRecord]) -> dict[str, int]:
    """Return the sums of parts' counts."""
    records = list(records)
    rows, errors = sum(r.num_rows for r in records), sum(r.num_errors for r in records)
    return {
        "shards": len({record.shard for record in records}),
        "units": len(records),
        "rows": rows,
        "ok": rows - errors,
        "errors": errors,
        "input_tokens": sum(record.num_input_tokens for record in records),
        "output_tokens": sum(record.num_output_tokens for record in records),
        "truncated_tokens": sum(record.num_truncated_tokens for record in records),
        "bytes": sum(record.bytes for record in records),
    }


def errors_by_kind(records: Iterable[UnitRecord]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        for kind, count in record.errors_by_kind.items():
            counts[kind] = counts.get(kind, 0) + count
    return dict(sorted(counts.items()))
