"""Retry: which rows with errors are computed again, and with which options. It computes nothing."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow.compute as pc

from batchloom.pipelines.counts import added
from batchloom.pipelines.errors import ERROR_KINDS, ConfigError, OutputError
from batchloom.pipelines.ledger.ledger import Found, JobRecord
from batchloom.pipelines.ledger.parts import key_of
from batchloom.pipelines.ledger.resume import Done, Pending, rows_with_errors
from batchloom.pipelines.planning.fingerprint import as_json, differences, fingerprint
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.planning.spans import Range
from batchloom.pipelines.stores.storage import Store
from batchloom.pipelines.tasks.cures import own_options


def continued(job: JobPlan, found: Found, kinds: Collection[str] | None) -> JobPlan:
    """Return the job that an output belongs to, with the task of `job`, where the two differ in nothing but options
    that concern rows with errors; else `job`.

    Such options may differ where these rows are retried: `kinds` of errors, or all where there are none. They are noted
    in the job's record, and may differ from then on.

    Raises: ConfigError where a retry would come with options that decide answers that are there; OutputError where
    such options differ and nothing is retried.
    """
    before = found.job
    if before is None or job.config.output.mode == "overwrite":
        return job
    if before.fingerprint == job.fingerprint:
        return replace(job, retries=before.retries)
    is_known = job.fingerprint in (retry.get("fingerprint") for retry in before.retries)
    if not is_known:
        if not _is_of(before, found):
            return job  # whose the output is, is asked later
        differing = list(differences(before.fingerprint_of, job.fingerprint_of))
        options = before.fingerprint_of.get("task_options", {})
        own = {f"task_options.{name}" for name in own_options(job.task.cures, kinds or (), options)}
        others = [line for line in differing if line.partition(" was ")[0] not in own]
        if kinds is None:
            if not others:
                raise OutputError(_without_retry(job, differing))
            return job
        if others:
            raise ConfigError(_too_different(job, kinds, own, others))
    settings = as_json(job.task.settings())
    noted = {"fingerprint": job.fingerprint, "kinds": sorted(kinds or ()), "task_options": settings}
    return replace(
        job,
        config=replace(job.config, task_options=before.job.get("task_options", {})),
        fingerprint_of=before.fingerprint_of,
        retries=(*before.retries, *([] if is_known else [noted])),
    )


def _is_of(job: JobRecord, found: Found) -> bool:
    """Return whether the parts and answers that are there are the job's, and its record is whole."""
    names = [*map(key_of, found.parts), *found.answers]
    is_whole = fingerprint(job.fingerprint_of) == job.fingerprint
    return is_whole and bool(names) and all(name.endswith(f"-{job.fingerprint[:8]}") for name in names)


def _without_retry(job: JobPlan, differing: Sequence[str]) -> str:
    lines = "".join(f"  {line}\n" for line in differing)
    return (
        f"Output {job.output.url} belongs to another configuration:\n{lines}"
        "That concerns rows with errors alone: run with --retry-errors to compute these again, and nothing else. Or "
        "change the job file back, or choose another output.path."
    )


def _too_different(job: JobPlan, kinds: Collection[str], own: Collection[str], others: Sequence[str]) -> str:
    may = f"only {', '.join(sorted(own))}" if own else "no option"
    return (
        f"--retry-errors keeps the answers of {job.output.url}, and these decide them, too: {'; '.join(others)}. "
        f"Of what decides answers {may} may differ for {', '.join(sorted(kinds)) or 'these errors'}. Change the others "
        "back, or choose another output.path."
    )


@dataclass(frozen=True)
class Retry:
    """Which rows are computed again, by the part that they are in."""

    missing: Mapping[str, tuple[Range, ...]]
    errors: Mapping[str, int]
    """Those rows, by the errors that they have now."""
    kinds: frozenset[str] | None = None
    """That are retried: none for all. None where nothing is."""

    @staticmethod
    def none() -> "Retry":
        return Retry({}, {})

    @staticmethod
    def of(job: JobPlan, done: Done, kinds: frozenset[str]) -> "Retry":
        """Choose the rows with errors of these kinds, of parts whose input is there; no kinds stand for all.

        Raises: ConfigError where there is no such kind, or the job overwrites what it would keep.
        """
        if job.config.output.mode == "overwrite":
            raise ConfigError(
                "--retry-errors keeps the answers that are there, and output.mode: overwrite removes them."
            )
        there = done.register.errors_by_kind()
        if unknown := sorted(kinds - ERROR_KINDS - set(there)):
            counts = ", ".join(f"{count} {kind}" for kind, count in there.items()) or "none"
            raise ConfigError(
                f"--retry-errors: there is no kind of error {', '.join(map(repr, unknown))}. "
                f"Errors of {job.config.output.path} so far: {counts}. All kinds: {', '.join(sorted(ERROR_KINDS))}."
            )
        has_errors = pc.greater(done.register.table["num_errors"], 0).to_pylist()
        records = [
            record
            for record in done.register.chosen(has_errors)
            if _of_kinds(record.errors_by_kind, kinds)
            and all(span.shard in job.shards_by_name for span in record.spans)
        ]
        rows = rows_with_errors(job.output, records, kinds)
        missing = {record.part: ranges for record, ranges in zip(records, rows, strict=True) if ranges}
        errors = added(_of_kinds(record.errors_by_kind, kinds) for record in records)
        return Retry(missing, errors, kinds)

    def forgetting(self, store: Store, pending: Pending) -> Pending:
        """Return a part that is not finished without its files with answers that hold such errors: their units are
        computed again, which gives the other rows the answers that they have. Raises: StoreError."""
        if self.kinds is None:
            return pending
        again = [one for one in pending.saved if _of_kinds(one.errors_by_kind(store), self.kinds)]
        missing = sorted([*pending.missing, *(own for one in again for own in one.ranges)])
        return replace(pending, missing=tuple(missing), saved=tuple(one for one in pending.saved if one not in again))


def _of_kinds(counts: Mapping[str, int], kinds: Collection[str]) -> dict[str, int]:
    """Return the counts of errors of these kinds; of no kinds: all."""
    return {kind: count for kind, count in counts.items() if not kinds or kind in kinds}
