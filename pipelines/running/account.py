"""The account of one run of a job: what was found done, what was computed, whether limits hold, and the manifest."""

import hashlib
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from batchloom.pipelines.counts import (
    DEGENERATE_KINDS,
    EQUAL_CHOICES,
    LOGIT_ERROR,
    NO_SUMS,
    READY_AT,
    Counts,
    PartRecord,
)
from batchloom.pipelines.errors import ErrorLimitError
from batchloom.pipelines.ledger.manifest import Manifest
from batchloom.pipelines.ledger.register import Register
from batchloom.pipelines.metrics import Event, Planned, Replicas
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.running.course import Course
from batchloom.pipelines.running.failures import Failures
from batchloom.pipelines.tasks.cures import advice
from batchloom.pipelines.telemetry.measures import add

HELD_RECORDS = 4096  # as Python objects; the others are in Arrow tables
REPORTED_VERSIONS = ("batchloom", "ray", "torch", "pyarrow", "tokenizers")


@dataclass
class Account:
    """What one run of a job adds up to: records, errors, measures and times. Each sum is kept, not made anew."""

    job: JobPlan
    kept: Register
    """The parts that are there and stay as they are."""
    num_units_pending: int
    num_rows_pending: int
    num_parts_pending: int
    errors: Counter[str]
    """Rows with errors so far, by kind, without those that are to be computed again."""
    degenerate: Counter[str]
    """Degenerate answers so far, by kind."""
    written: list[Register] = field(default_factory=list)
    held: list[PartRecord] = field(default_factory=list)
    """The parts that were written last."""
    num_units_computed: int = 0
    num_rows_computed: int = 0
    """By this run."""
    replicas: Replicas = field(default_factory=lambda: Replicas(0, 0))
    """As they were told of last."""
    failures: Failures = field(default_factory=Failures)
    measures: dict[str, float] = field(default_factory=dict)
    course: Course = field(default_factory=Course)
    started: float = field(default_factory=time.time)
    ready_at: float = math.inf
    agreement: dict[str, float] = field(default_factory=dict)
    """Of int8 with float32, the worst of all replicas."""
    num_rows_left_out: int = 0
    """Of `num_rows`, by the selection, so far."""

    def __post_init__(self) -> None:
        of_gone = [  # parts of inputs that are gone
            (spans, num_rows)
            for spans, num_rows in zip(self.kept.spans(), self.kept.table["num_rows"].to_pylist(), strict=True)
            if any(span.shard not in self.job.shards_by_name for span in spans)
        ]
        gone = [span for spans, _ in of_gone for span in spans if span.shard not in self.job.shards_by_name]
        self.num_shards = len(self.job.shards) + len({span.shard for span in gone})
        self.num_units = self.job.num_units + len(of_gone)
        self.num_rows = self.job.num_rows + sum(span.num_rows for span in gone)
        self.num_rows_left_out = self.kept.totals()["left_out"]

    def planned(self) -> Planned:
        return Planned(
            num_shards=self.num_shards,
            num_units=self.num_units,
            num_rows=self.num_rows,
            num_units_done=self.num_units - self.num_units_pending,
            num_rows_done=self.num_rows - self.num_rows_pending,
            num_parts=self.num_parts_pending,
            num_errors_done=self.errors.total(),
        )

    def computed(self, counts: Counts, measures: Mapping[str, float], num_left_out: int = 0) -> None:
        """Add a unit whose answers are safe. `num_left_out` of its rows are not chosen."""
        self.num_units_computed += 1
        self.course.add(time.time() - self.started, counts)
        self.num_rows_left_out += num_left_out
        self.failures.done()
        self.errors.update(counts.errors_by_kind)
        self.degenerate.update(counts.degenerate)
        self.num_rows_computed += counts.num_rows
        self.ready_at = min(self.ready_at, measures.get(READY_AT, math.inf))
        for name, worse in ((LOGIT_ERROR, max), (EQUAL_CHOICES, min)):
            if name in measures:
                self.agreement[name] = worse(measures[name], self.agreement.get(name, measures[name]))
        add(self.measures, {name: value for name, value in measures.items() if name not in NO_SUMS})

    def saw(self, event: Event) -> None:
        """Take note of what replicas do with their time."""
        if isinstance(event, Replicas):
            self.replicas = event

    def wrote(self, record: PartRecord, measures: Mapping[str, float]) -> None:
        """Add a part."""
        self.failures.done()
        add(self.measures, measures)
        self.held.append(record)
        if len(self.held) == HELD_RECORDS:
            self.written.append(Register.of(self.held))
            self.held = []

    def parts(self) -> Register:
        """Return the records of all parts that are there, in the order of their rows."""
        return Register.joined([self.kept, *self.written, Register.of(self.held)]).sorted()

    def check_limit(self) -> None:
        """Raises: ErrorLimitError as soon as the job cannot end within `limits` any more."""
        limit = self.job.config.limits.max_error_rate
        num_errors, num_rows = self.errors.total(), max(self.num_rows - self.num_rows_left_out, 1)
        if num_errors and num_errors / num_rows > limit:  # 29 / 100 is 0.29, 0.29 * 100 is not 29
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.errors.items()) if count)
            raise ErrorLimitError(
                f"{num_errors} of {num_rows} rows failed ({kinds}); limits.max_error_rate is {limit}. "
                f"Finished parts are kept. {advice(self.errors, self.job.task.cures, self.job.task.settings())} "
                "To keep the error rows, raise the limit and run the same command again."
            )
        limit = self.job.config.limits.max_degenerate_rate
        num_degenerate = self.degenerate.total() - self.degenerate["truncated"]  # truncated alone does not count
        if num_degenerate and num_degenerate / num_rows > limit:
            kinds = ", ".join(f"{self.degenerate[kind]} {kind}" for kind in DEGENERATE_KINDS if self.degenerate[kind])
            raise ErrorLimitError(
                f"{num_degenerate} of {num_rows} answers are degenerate ({kinds}; truncated ones do not "
                f"count); limits.max_degenerate_rate is {limit}. Finished parts are kept. Look at them with batchloom "
                "show; change the checkpoint or generation, or raise the limit, and run again."
            )

    def manifest(self) -> Manifest:
        """Return the manifest of what is kept and written. Raises: ErrorLimitError, as `check_limit`."""
        parts = self.parts()
        totals = parts.totals()
        self.num_rows_left_out = totals["left_out"]
        self.errors, self.degenerate = Counter(parts.errors_by_kind()), Counter(parts.degenerate())
        self.check_limit()
        return Manifest(
            **self.job.job_record(),
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in REPORTED_VERSIONS},
            },
            totals={
                **totals,
                "shards": self.num_shards,
                "left_out": totals["left_out"] + self.job.num_rows_excluded,
            },
            errors_by_kind=dict(self.errors),
            degenerate=dict(self.degenerate),
            timing=self._timing(),
            replicas=tuple(
                {"node": one.node, "process_id": one.process_id, **asdict(one.usage)}
                for one in self.replicas.most_waiting
            ),
            course=self.course.columns(),
            machine=_machine(),
            agreement=dict(self.agreement),
            parts=parts,
            parts_sha256=hashlib.sha256(parts.to_bytes()).hexdigest(),
        )

    def _timing(self) -> dict[str, Any]:
        now = time.time()
        return {
            "started": self.started,  # seconds since 1970
            "wall_seconds": now - self.started,
            "startup_seconds": min(self.ready_at, now) - self.started,  # until the first replica had loaded its model
            "rows_computed": self.num_rows_computed,
            "units_computed": self.num_units_computed,
            "units_resumed": self.num_units - self.num_units_pending,
            **self.measures,
            "num_replicas": self.replicas.num_ready,
            **{f"replicas_{name}_seconds": seconds for name, seconds in asdict(self.replicas.usage).items()},
        }


def _machine() -> dict[str, str]:
    """Return what ran the driver. Where replicas ran is Ray's to say."""
    cores = os.cpu_count()
    return {"driver on": f"{platform.node()}, {platform.system()} {platform.machine()}, {cores} CPUs"}
