"""The events of a job, which a caller can watch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from batchloom.pipelines.counts import PartRecord, UnitRecord
from batchloom.pipelines.ledger.manifest import Manifest
from batchloom.pipelines.telemetry.usage import ReplicaUsage, Usage


@dataclass(frozen=True)
class Planned:
    """The job is planned: how much there is to do and how much is done already. Nothing is started yet."""

    num_shards: int
    num_units: int
    num_rows: int
    num_units_done: int
    num_rows_done: int
    num_parts: int = 0
    """That this run writes."""
    num_errors_done: int = 0
    """Rows with errors among those that are done."""


@dataclass(frozen=True)
class Retrying:
    """Rows with errors are computed again, as it was asked for. No rows where none has such an error."""

    num_parts: int
    """Parts that hold them."""
    errors_by_kind: Mapping[str, int]
    """Those rows, by the errors that they have now."""
    other_errors: Mapping[str, int] = field(default_factory=dict)
    """Rows with errors that are kept."""


@dataclass(frozen=True)
class ReplicasStarting:
    """Ray is about to start, and then replicas, which load their model. Left out where nothing is pending."""


@dataclass(frozen=True)
class UnitDone:
    """The answers to a unit are written, in its part or beside."""

    record: UnitRecord
    measures: Mapping[str, float] = field(default_factory=dict)
    """What it took: seconds of each stage, and what replicas computed since the unit before
    (pipelines/telemetry/measures.py)."""


@dataclass(frozen=True)
class PartDone:
    """A part is written."""

    record: PartRecord


@dataclass(frozen=True)
class Replicas:
    """How many replicas there are, and what they do with their time; told when their number changes, every ten seconds,
    and when all units are computed."""

    num_ready: int
    """That have loaded their model and report."""
    num_starting: int
    """That load their model, or wait for a node up to the pool's minimum."""
    num_units: int = 0
    """That they compute now."""
    usage: Usage = field(default_factory=Usage)
    """Of all replicas so far, also of those that are gone."""
    most_waiting: tuple[ReplicaUsage, ...] = ()
    """Those that waited longest, 16 at most."""


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
    """No part was finished for longer than expected, or no node can hold a replica or assemble parts. It comes again,
    ever more seldom, until a part is finished."""

    seconds: float
    """Since the last part, or since replicas are started."""
    replicas: tuple[ReplicaSight, ...]
    """All that ever began to load."""
    num_replicas: int
    """That the job starts with."""
    lacking: tuple[str, ...]
    """What the cluster lacks, in words."""
    seconds_left: float | None = None
    """Until the job fails (engine.replicas.wait_minutes), where no node can hold a replica or assemble parts. None
    where one can."""
    assembling: tuple[str, ...] = ()
    """Parts that are assembled, where nothing is left to compute."""


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
class PartFailed(UnitFailed):
    """A part could not be assembled, although the answers to all of its units are there: they stay. Rows of its first
    shard name it."""


@dataclass(frozen=True)
class Finished:
    """The manifest is written."""

    manifest: Manifest


Event = (
    Planned
    | Retrying
    | ReplicasStarting
    | Replicas
    | UnitDone
    | PartDone
    | UnitFailed
    | PartFailed
    | Waiting
    | ReplicaEnded
    | Finished
)
