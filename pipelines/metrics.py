"""The figures of a job: one record a unit, their sums, and the events that a caller can watch. It knows no rows."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from batchloom.pipelines.records import from_json

DEGENERATE_KINDS = ("empty", "copied", "repeating", "truncated")
"""A row is one of the first three at most; `truncated` is counted beside these."""
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
    degenerate: Mapping[str, int] = field(default_factory=dict)
    """Answered rows by DEGENERATE_KINDS, of tasks that generate; parts of earlier versions have none."""
    version: str = field(default="", compare=False)
    """The part's etag or modification time when it was written or found whole. A copy of the output has others."""

    @property
    def num_degenerate(self) -> int:
        """Rows that count for `limits.max_degenerate_rate`: all but those that are truncated alone."""
        return sum(count for kind, count in self.degenerate.items() if kind != "truncated")


@dataclass(frozen=True)
class Planned:
    """The job is planned: how much there is to do and how much is done already. Nothing is started yet."""

    num_shards: int
    num_units: int
    num_rows: int
    num_units_done: int
    num_rows_done: int


@dataclass(frozen=True)
class Retrying:
    """Rows with errors are computed again, as it was asked for. No rows where none has such an error."""

    num_units: int
    """Units that hold them."""
    errors_by_kind: Mapping[str, int]
    """Those rows, by the errors that they have now."""


@dataclass(frozen=True)
class ReplicasStarting:
    """Ray is about to start, and then replicas, which load their model. Left out where nothing is pending."""


@dataclass(frozen=True)
class UnitDone:
    """A part is written."""

    record: UnitRecord


@dataclass(frozen=True, kw_only=True)
class ReplicaSight:
    """What is known of a replica while a job waits."""

    node: str
    """Address of its node; empty where the node is gone."""
    process_id: int
    is_ready: bool
    """It has loaded its model."""
    is_alive: bool
    """Its node is there and its process reports."""
    heard_seconds: float
    """Since its process last reported."""
    progress_seconds: float
    """Since its last step, batch, or begin or end of a unit."""
    units: tuple[str, ...]
    """That it computes: shard and rows."""
    unit_seconds: float
    """Since it began the oldest of them."""


@dataclass(frozen=True)
class Waiting:
    """No part was finished for longer than expected, or no node can hold a replica. It comes again, ever more seldom,
    until a part is finished."""

    seconds: float
    """Since the last part, or since replicas are started."""
    replicas: tuple[ReplicaSight, ...]
    """All that ever began to load."""
    num_replicas: int
    """That the job starts with."""
    lacking: tuple[str, ...]
    """What the cluster lacks, in words."""
    seconds_left: float | None = None
    """Until the job fails (engine.replicas.wait_minutes), where no node can hold a replica. None where one can."""


@dataclass(frozen=True)
class ReplicaEnded:
    """A replica made no progress and was ended. Ray starts it again; it gets its units again."""

    node: str
    process_id: int
    reason: str
    units: tuple[str, ...]


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


Event = Planned | Retrying | ReplicasStarting | UnitDone | UnitFailed | Waiting | ReplicaEnded | Finished


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
    degenerate: Mapping[str, int] = field(default_factory=dict)
    """Answered rows by DEGENERATE_KINDS; empty for tasks that do not generate, and in manifests of earlier versions."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Manifest":
        """Read what `to_dict` made. Raises: ValueError where a value is missing or of another type."""
        manifest = from_json(Manifest, values)
        for name, counted, needed in (
            ("totals", manifest.totals, totals([])),
            ("timing", manifest.timing, ("wall_seconds", "units_computed", "units_resumed")),
        ):
            for missing in (one for one in needed if one not in counted):
                raise ValueError(f"{name}.{missing} is missing")
        return manifest


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
    return _summed(record.errors_by_kind for record in records)


def degenerate(records: Iterable[UnitRecord]) -> dict[str, int]:
    return _summed(record.degenerate for record in records)


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for own in counts:
        for kind, count in own.items():
            sums[kind] = sums.get(kind, 0) + count
    return dict(sorted(sums.items()))
