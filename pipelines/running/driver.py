"""The driver runs a job from plan to manifest. What is done stays; the rest is streamed through Ray."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.counts import NO_SUMS, PartRecord, UnitRecord
from batchloom.pipelines.errors import JobError, OutputError, StoreError
from batchloom.pipelines.ledger import ledger, ownership
from batchloom.pipelines.ledger.manifest import Manifest
from batchloom.pipelines.ledger.register import Register
from batchloom.pipelines.ledger.resume import Done, Pending, rewritten
from batchloom.pipelines.metrics import Event, Finished, PartDone, ReplicasStarting, Retrying, UnitDone, UnitFailed
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.planning.planner import plan
from batchloom.pipelines.ray_version import check_ray
from batchloom.pipelines.running.account import Account
from batchloom.pipelines.running.pulse import Pulse
from batchloom.pipelines.running.retry import Retry, continued


def ignore(event: Event) -> None:
    """Ignore an event: the default watcher."""


def run(
    config: JobConfig,
    on_event: Callable[[Event], None] = ignore,
    retry_errors: Collection[str] | None = None,
    even_if_running: bool = False,
) -> Manifest:
    """Compute the pending units of a job, close it, and return its manifest. Finished parts survive every error, so the
    same call resumes the job.

    `retry_errors`: kinds of errors; rows with such an error are computed again. An empty collection stands for all.
    Options that concern these rows alone may differ from those of the job before. `even_if_running`: also beside
    another driver of the same output.

    Raises:
        ConfigError: the job is wrong, its input or output do not fit it, or it is running already; nothing was done.
        ModelError: the checkpoint or its tokenizer cannot be used.
        ErrorLimitError: more rows failed, or are degenerate, than `limits` allow.
        JobError: the job could not go on, or units failed: all others are done.
    """
    job = plan(config)
    with Pulse(job.output, job.fingerprint, even_if_running) as pulse:

        def watch(event: Event) -> None:
            pulse(event)
            on_event(event)

        return _run(job, pulse, watch, retry_errors)


def _run(
    job: JobPlan, pulse: Pulse, on_event: Callable[[Event], None], retry_errors: Collection[str] | None
) -> Manifest:
    found = ledger.look(job.output)
    job = continued(job, found, retry_errors)
    config, store = job.config, job.output
    ownership.refuse_foreign(job, found)
    is_overwriting = config.output.mode == "overwrite"
    done = Done(Register.of([])) if is_overwriting else Done.find(job, found)
    retry = Retry.none() if retry_errors is None else Retry.of(job, done, frozenset(retry_errors))
    todo = Todo.of(job, done, retry)
    account = todo.account(job, done, retry)

    def watch(event: Event) -> None:
        account.saw(event)
        on_event(event)

    on_event(account.planned())
    if retry_errors is not None:
        on_event(Retrying(len(retry.missing), dict(retry.errors), dict(account.errors)))
    account.check_limit()
    is_settled = not (is_overwriting or todo.pending or done.superseded)
    manifest = _closed_manifest(account, found) if is_settled else None
    if manifest is None:
        ledger.open_job(store, job.job_record(), found if is_overwriting else None, done.superseded)
        job.keep_footers()
        pulse.begin()
        with _going_on(), ledger.RecordLog(store) as records:
            for made, measures in _stream(job, todo, watch):
                _account_for(made, measures, account, records, on_event)
            if account.failures.failed:
                account.failures.check(ledger.lost_parts(store, account.parts(), ledger.look(store)))
        manifest = account.manifest()
        _check_rows(manifest, account)
        found = ledger.check_parts(store, manifest.parts)
        ownership.refuse_company(job, found, ours=manifest.parts.table["part"].to_pylist())
        pulse.rest()
        ledger.close_job(store, manifest, job.columns if config.output.format == "jsonl" else None)
    on_event(Finished(manifest))
    return manifest


def _account_for(
    made: UnitRecord | PartRecord | UnitFailed,
    measures: Mapping[str, float],
    account: Account,
    records: ledger.RecordLog,
    on_event: Callable[[Event], None],
) -> None:
    """Raises: ErrorLimitError, JobError where too much fails."""
    if isinstance(made, UnitFailed):
        on_event(made)
        account.failures.add(made)
        return
    if isinstance(made, UnitRecord):
        account.computed(made, measures, made.num_covered - made.num_rows)
        on_event(UnitDone(made, {name: value for name, value in measures.items() if name not in NO_SUMS}))
    else:
        account.wrote(made, measures)
        records.add(made)
        on_event(PartDone(made))
    account.check_limit()


@contextmanager
def _going_on() -> Iterator[None]:
    """Say, where a store fails the whole job, what is kept."""
    try:
        yield
    except StoreError as error:
        kept = "Finished parts are kept: the same command goes on from there."
        raise StoreError(f"{error} {kept}", error.trouble) from error


def _check_rows(manifest: Manifest, account: Account) -> None:
    """Raises: JobError where the parts do not add up to the rows of the input: then nothing is closed."""
    num_covered = sum(manifest.parts.totals()[name] for name in ("rows", "left_out"))
    if num_covered != account.num_rows:
        raise JobError(
            f"The parts cover {num_covered} rows and the input has {account.num_rows}, so the output is not "
            "closed: the same command computes what is missing. This should never be; please report it."
        )


@dataclass(frozen=True)
class Todo:
    """What is left to do."""

    pending: Sequence[Pending]
    num_units: int
    """That have to be computed."""
    num_rows: int
    """Of these units."""

    @staticmethod
    def of(job: JobPlan, done: Done, retry: Retry) -> "Todo":
        """Raises: OutputError where a part has to be written again and its input is gone."""
        again = {record.part: rewritten(job, record) for record in done.of_another_layout(job)}
        for record in done.register.chosen(
            pc.is_in(done.register.table["part"], pa.array(list(retry.missing), pa.string())).to_pylist()
        ):
            again[record.part] = rewritten(job, record, retry.missing[record.part])
        pending = [*(retry.forgetting(job.output, one) for one in done.pending(job)), *again.values()]
        units = [unit.num_rows for one in pending if one.missing for unit in one.units(job)]
        return Todo(pending, len(units), sum(units))

    def account(self, job: JobPlan, done: Done, retry: Retry) -> Account:
        replaced = [one.earlier.part for one in self.pending if one.earlier is not None]
        is_kept = pc.invert(pc.is_in(done.register.table["part"], pa.array(replaced, pa.string())))
        return Account(
            job,
            done.register.chosen(is_kept.to_pylist()),
            num_units_pending=self.num_units,
            num_rows_pending=self.num_rows,
            num_parts_pending=len(self.pending),
            errors=Counter(done.register.errors_by_kind()) - Counter(retry.errors),
            degenerate=Counter(done.register.degenerate()),
        )


def _closed_manifest(account: Account, found: ledger.Found) -> Manifest | None:
    """Return the manifest that closes this very job; None where something is left to do."""
    if not found.is_closed:
        return None
    try:
        closed = ledger.read_manifest(account.job.output)
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
    job: JobPlan, todo: Todo, on_event: Callable[[Event], None]
) -> Iterator[tuple[UnitRecord | PartRecord | UnitFailed, Mapping[str, float]]]:
    """Yield records and measures as answers and parts are written. Where nothing is left, Ray is not started."""
    if todo.pending:
        check_ray()
        from batchloom.pipelines.running.stream import stream

        if todo.num_units:
            on_event(ReplicasStarting())
        yield from stream(job, todo.pending, todo.num_units, on_event)
