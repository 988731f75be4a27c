"""The driver runs a job from plan to manifest. Units that have a part are done; the rest is streamed through Ray."""

import math
import platform
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import ERROR_KINDS, ConfigError, ErrorLimitError, OutputError
from batchloom.pipelines.failures import Failures
from batchloom.pipelines.ledger import ledger, ownership
from batchloom.pipelines.metrics import (
    DEGENERATE_KINDS,
    READY_AT,
    Event,
    Finished,
    Manifest,
    Planned,
    ReplicasStarting,
    Retrying,
    UnitDone,
    UnitFailed,
    UnitRecord,
    degenerate,
    errors_by_kind,
    totals,
)
from batchloom.pipelines.planning.job_plan import JobPlan, plan
from batchloom.pipelines.stages.retry import Retry

REPORTED_VERSIONS = ("batchloom", "ray", "torch", "pyarrow", "tokenizers")


def ignore(event: Event) -> None:
    """Ignore an event: the default watcher."""


def run(
    config: JobConfig, on_event: Callable[[Event], None] = ignore, retry_errors: Collection[str] | None = None
) -> Manifest:
    """Compute the pending units of a job, close it, and return its manifest. Finished parts survive every error, so the
    same call resumes the job.

    `retry_errors`: kinds of errors; rows with such an error are computed again. An empty collection stands for all.

    Raises:
        ConfigError: the job is wrong, or its input or output do not fit it; nothing was computed.
        ModelError: the checkpoint or its tokenizer cannot be used.
        ErrorLimitError: more rows failed, or are degenerate, than `limits` allow.
        JobError: the job could not go on, or units failed: all others are done.
    """
    job = plan(config)
    config, store = job.config, job.output
    found = ledger.look(store)
    kept = ownership.refuse_foreign(job, found)
    is_overwriting = config.output.mode == "overwrite"
    done = [] if is_overwriting else ledger.whole_parts(store, found, job.parts, kept)
    retry = None if retry_errors is None else _retry(job, done, frozenset(retry_errors))
    account = Account(job, [record for record in done if retry is None or record.part not in retry.hashes])
    on_event(account.planned())
    if retry is not None:
        on_event(_retrying(retry, done))
    account.check_limit()
    manifest = _closed_manifest(account, found)
    if manifest is None:
        ledger.open_job(store, job.job_record(), overwritten=found.parts if is_overwriting else ())
        for made, measures in _stream(job, account, retry, on_event):
            if isinstance(made, UnitFailed):
                on_event(made)
                account.failures.add(made)
            else:
                account.add(made, measures)
                on_event(UnitDone(made))
                account.check_limit()
        account.failures.check()
        manifest = account.manifest()
        found = ledger.check_parts(store, manifest.parts)
        ownership.refuse_company(job, found, ours=[record.part for record in manifest.parts])
        ledger.close_job(store, manifest)
    on_event(Finished(manifest))
    return manifest


def _retry(job: JobPlan, done: Sequence[UnitRecord], kinds: frozenset[str]) -> Retry:
    """Return which parts hold rows with errors of these kinds. Those of inputs that are gone are left out.

    Raises: ConfigError where there is no such kind, or the job overwrites what it would keep.
    """
    if job.config.output.mode == "overwrite":
        raise ConfigError("--retry-errors keeps the answers that are there, and output.mode: overwrite removes them.")
    there = errors_by_kind(done)
    if unknown := sorted(kinds - ERROR_KINDS - set(there)):
        counts = ", ".join(f"{count} {kind}" for kind, count in there.items()) or "none"
        raise ConfigError(
            f"--retry-errors: there is no kind of error {', '.join(map(repr, unknown))}. "
            f"Errors of {job.config.output.path} so far: {counts}. All kinds: {', '.join(sorted(ERROR_KINDS))}."
        )
    chosen = [record for record in done if record.part in job.parts and _of_kinds(record, kinds)]
    hashes = {record.part: record.sha256 for record in chosen}
    return Retry(kinds=kinds, hashes=hashes, store=job.output, fingerprint=job.fingerprint)


def _of_kinds(record: UnitRecord, kinds: Collection[str]) -> dict[str, int]:
    """Return how many rows of a part have errors of these kinds; of no kinds: of all."""
    return {kind: count for kind, count in record.errors_by_kind.items() if not kinds or kind in kinds}


def _retrying(retry: Retry, done: Sequence[UnitRecord]) -> Retrying:
    chosen = [record for record in done if record.part in retry.hashes]
    there = errors_by_kind(chosen)
    return Retrying(len(chosen), {kind: n for kind, n in there.items() if not retry.kinds or kind in retry.kinds})


def _closed_manifest(account: "Account", found: ledger.Found) -> Manifest | None:
    """Return the manifest that closes this very job; None where something is left to do."""
    job = account.job
    if not found.is_closed or account.pending or job.config.output.mode == "overwrite":
        return None
    try:
        closed = ledger.read_manifest(job.output)
    except OutputError:  # the parts are whole, and it is written anew from them
        return None
    now = account.manifest()
    return closed if closed is not None and _decisive(closed) == _decisive(now) else None


def _decisive(manifest: Manifest) -> list[Any]:
    """Return what makes a manifest that of a job and its parts: not how or when the parts were computed."""
    return [
        manifest.fingerprint,
        manifest.fingerprint_of,
        manifest.job.get("input"),
        manifest.totals,
        manifest.errors_by_kind,
        manifest.parts,
    ]


def _stream(
    job: JobPlan, account: "Account", retry: Retry | None, on_event: Callable[[Event], None]
) -> Iterator[tuple[UnitRecord | UnitFailed, dict[str, float]]]:
    """Yield units' records and measures as their parts are written. Without pending units Ray is not started."""
    if account.pending:
        from batchloom.pipelines.stream import stream

        on_event(ReplicasStarting())
        yield from stream(job, account.pending, retry, on_event)


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
        if self.num_degenerate and self.num_degenerate / self.job.num_rows > limit:
            counts = degenerate([*self.resumed, *self.computed])
            kinds = ", ".join(f"{counts[kind]} {kind}" for kind in DEGENERATE_KINDS if counts[kind])
            raise ErrorLimitError(
                f"{self.num_degenerate} of {self.job.num_rows} answers are degenerate ({kinds}; truncated ones do not "
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
