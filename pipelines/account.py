"""The account of one run of a job: what was found done, what was computed, whether limits hold, and the manifest."""

import math
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from batchloom.pipelines.errors import ErrorLimitError
from batchloom.pipelines.failures import Failures
from batchloom.pipelines.metrics import (
    DEGENERATE_KINDS,
    READY_AT,
    Manifest,
    Planned,
    UnitRecord,
    degenerate,
    errors_by_kind,
    totals,
)
from batchloom.pipelines.planning.job_plan import JobPlan

REPORTED_VERSIONS = ("batchloom", "ray", "torch", "pyarrow", "tokenizers")


@dataclass
class Account:
    """What one run of a job adds up to: records, errors, measures and times."""

    job: JobPlan
    resumed: list[UnitRecord]
    computed: list[UnitRecord] = field(default_factory=list)
    failures: Failures = field(default_factory=Failures)
    measures: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    ready_at: float = math.inf

    def __post_init__(self) -> None:
        done = {record.part for record in self.resumed}
        self.pending = [unit for name, unit in self.job.parts.items() if name not in done]
        self.num_errors = sum(record.num_errors for record in self.resumed)
        self.num_degenerate = sum(record.num_degenerate for record in self.resumed)

        kept = [record for record in self.resumed if record.part not in self.job.parts]  # their inputs are gone
        self.num_shards = len(self.job.shards) + len({record.shard for record in kept})
        self.num_units = len(self.job.units) + len(kept)
        self.num_rows = self.job.num_rows + sum(record.num_rows for record in kept)

    def planned(self) -> Planned:
        return Planned(
            num_shards=self.num_shards,
            num_units=self.num_units,
            num_rows=self.num_rows,
            num_units_done=len(self.resumed),
            num_rows_done=sum(record.num_rows for record in self.resumed),
        )

    def add(self, record: UnitRecord, measures: dict[str, float]) -> None:
        self.computed.append(record)
        self.failures.done()
        self.num_errors += record.num_errors
        self.num_degenerate += record.num_degenerate
        self.ready_at = min(self.ready_at, measures.pop(READY_AT))
        for name, value in measures.items():
            self.measures[name] = self.measures.get(name, 0) + value

    def check_limit(self) -> None:
        """Raises: ErrorLimitError as soon as the job cannot end within `limits` any more."""
        limit = self.job.config.limits.max_error_rate
        if self.num_errors and self.num_errors / self.num_rows > limit:  # 29 / 100 is 0.29, 0.29 * 100 is not 29
            counts = errors_by_kind([*self.resumed, *self.computed])
            kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
            raise ErrorLimitError(
                f"{self.num_errors} of {self.num_rows} rows failed ({kinds}); limits.max_error_rate is {limit}. "
                "Finished parts are kept. Mend the input or raise the limit, and run again."
            )
        limit = self.job.config.limits.max_degenerate_rate
        if self.num_degenerate and self.num_degenerate / self.num_rows > limit:
            counts = degenerate([*self.resumed, *self.computed])
            kinds = ", ".join(f"{counts[kind]} {kind}" for kind in DEGENERATE_KINDS if counts[kind])
            raise ErrorLimitError(
                f"{self.num_degenerate} of {self.num_rows} answers are degenerate ({kinds}; truncated ones do not "
                f"count); limits.max_degenerate_rate is {limit}. Finished parts are kept. Look at them with batchloom "
                "show; change the checkpoint or generation, or raise the limit, and run again."
            )

    def manifest(self) -> Manifest:
        records = sorted([*self.resumed, *self.computed], key=lambda record: (record.shard, record.start))
        return Manifest(
            **self.job.job_record(),
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in REPORTED_VERSIONS},
            },
            totals={**totals(records), "shards": self.num_shards},
            errors_by_kind=errors_by_kind(records),
            degenerate=degenerate(records),
            timing=self._timing(),
            parts=tuple(records),
        )

    def _timing(self) -> dict[str, Any]:
        now = time.time()
        return {
            "wall_seconds": now - self.started,
            "startup_seconds": min(self.ready_at, now) - self.started,  # until the first replica had loaded its model
            "units_computed": len(self.computed),
            "units_resumed": len(self.resumed),
            **self.measures,
        }
