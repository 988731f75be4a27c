"""The driver runs a job from plan to manifest. Units that have a part are done; the rest is streamed through Ray."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from batchloom.pipelines.account import Account
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import ERROR_KINDS, ConfigError, OutputError
from batchloom.pipelines.ledger import ledger, ownership
from batchloom.pipelines.metrics import (
    Event,
    Finished,
    Manifest,
    ReplicasStarting,
    Retrying,
    UnitDone,
    UnitFailed,
    UnitRecord,
    errors_by_kind,
)
from batchloom.pipelines.planning.job_plan import JobPlan, plan
from batchloom.pipelines.stages.retry import Retry


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
        job.keep_footers()
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
    chosen = [record for record in done if record.part in job.parts and _of_kinds(record.errors_by_kind, kinds)]
    hashes = {record.part: record.sha256 for record in chosen}
    return Retry(kinds=kinds, hashes=hashes, store=job.output, fingerprint=job.fingerprint)


def _of_kinds(counts: Mapping[str, int], kinds: Collection[str]) -> dict[str, int]:
    """Return the counts of errors of these kinds; of no kinds: all."""
    return {kind: count for kind, count in counts.items() if not kinds or kind in kinds}


def _retrying(retry: Retry, done: Sequence[UnitRecord]) -> Retrying:
    chosen = [record for record in done if record.part in retry.hashes]
    return Retrying(len(chosen), _of_kinds(errors_by_kind(chosen), retry.kinds))


def _closed_manifest(account: Account, found: ledger.Found) -> Manifest | None:
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
        manifest.degenerate,
        manifest.parts,
    ]


def _stream(
    job: JobPlan, account: Account, retry: Retry | None, on_event: Callable[[Event], None]
) -> Iterator[tuple[UnitRecord | UnitFailed, dict[str, float]]]:
    """Yield units' records and measures as their parts are written. Without pending units Ray is not started."""
    if account.pending:
        from batchloom.pipelines.stream import stream

        on_event(ReplicasStarting())
        yield from stream(job, account.pending, retry, on_event)
