"""The driver runs a job from plan to manifest. Units that have a part are done; the rest is streamed through Ray."""

import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import ErrorLimitError
from batchloom.pipelines.failures import Failures
from batchloom.pipelines.ledger import ledger
from batchloom.pipelines.metrics import (
    READY_AT,
    Event,
    Finished,
    Manifest,
    Planned,
    ReplicasStarting,
    UnitDone,
    UnitFailed,
    UnitRecord,
    errors_by_kind,
    totals,
)
from batchloom.pipelines.planning.job_plan import JobPlan, plan

REPORTED_VERSIONS = ("batchloom", "ray", "torch", "pyarrow", "tokenizers")


def ignore(event: Event) -> None:
    """Ignore an event: the default watcher."""


def run(config: JobConfig, on_event: Callable[[Event], None] = ignore) -> Manifest:
    """Compute the pending units of a job, close it, and return its manifest. Finished parts survive every error, so the
    same call resumes the job.

    Raises:
        ConfigError: the job is wrong, or its input or output do not fit it; nothing was computed.
        ModelError: the checkpoint or its tokenizer cannot be used.
        ErrorLimitError: more rows failed than `limits.max_error_rate` allows.
        JobError: the job could not go on, or units failed: all others are done.
    """
    job = plan(config)
    config, store = job.config, job.output
    found = ledger.look(store)
    ledger.refuse_foreign(store, found, config.output.mode, job.job_record(), job.parts)
    account = Account(job, _done_already(job, found))
    on_event(account.planned())
    account.check_limit()
    manifest = ledger.read_manifest(store) if found.is_closed else None
    is_finished = manifest is not None and manifest.fingerprint == job.fingerprint and not account.pending
    if manifest is None or not is_finished or config.output.mode == "overwrite":
        ledger.open_job(store, found, config.output.mode, job.job_record())
        for made, measures in _stream(job, account, on_event):
            if isinstance(made, UnitFailed):
                on_event(made)
                account.failures.add(made)
            else:
                account.add(made, measures)
                on_event(UnitDone(made))
                account.check_limit()
        account.failures.check()
        manifest = account.manifest()
        ledger.refuse_company(store, job.parts)
        ledger.close_job(store, manifest)
    on_event(Finished(manifest))
    return manifest


def _done_already(job: JobPlan, found: ledger.Found) -> list[UnitRecord]:
    if job.config.output.mode == "overwrite":
        return []
    return ledger.whole_parts(job.output, found, job.parts)


def _stream(
    job: JobPlan, account: "Account", on_event: Callable[[Event], None]
) -> Iterator[tuple[UnitRecord | UnitFailed, dict[str, float]]]:
    """Yield units' records and measures as their parts are written. Without pending units Ray is not started."""
    if account.pending:
        from batchloom.pipelines.stream import stream

        on_event(ReplicasStarting())
        yield from stream(job, account.pending)


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

    def planned(self) -> Planned:
        return Planned(
            num_shards=len(self.job.shards),
            num_units=len(self.job.units),
            num_rows=self.job.num_rows,
            num_units_done=len(self.resumed),
            num_rows_done=sum(record.num_rows for record in self.resumed),
        )

    def add(self, record: UnitRecord, measures: dict[str, float]) -> None:
        self.computed.append(record)
        self.failures.done()
        self.num_errors += record.num_errors
        self.ready_at = min(self.ready_at, measures.pop(READY_AT))
        for name, value in measures.items():
            self.measures[name] = self.measures.get(name, 0) + value

    def check_limit(self) -> None:
        """Raises: ErrorLimitError as soon as the job cannot end within `limits.max_error_rate` any more."""
        limit = self.job.config.limits.max_error_rate
        if self.num_errors and self.num_errors / self.job.num_rows > limit:  # 29 / 100 is 0.29, 0.29 * 100 is not 29
            counts = errors_by_kind([*self.resumed, *self.computed])
            kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
            raise ErrorLimitError(
                f"{self.num_errors} of {self.job.num_rows} rows failed ({kinds}); limits.max_error_rate is {limit}. "
                "Finished parts are kept. Mend the input or raise the limit, and run again."
            )

    def manifest(self) -> Manifest:
        records = sorted([*self.resumed, *self.computed], key=lambda record: (record.shard, record.start))
        return Manifest(
            **self.job.job_record(),
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in REPORTED_VERSIONS},
            },
            totals={**totals(records), "shards": len(self.job.shards)},
            errors_by_kind=errors_by_kind(records),
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
