"""Infer is the actor that Ray keeps a pool of: one replica, several units in flight. The replica orders the work."""

import atexit
import gc
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from batchloom.models.errors import ModelError, RankLostError
from batchloom.pipelines import cluster
from batchloom.pipelines.counts import READY_AT
from batchloom.pipelines.errors import JobError, PipelineError, RowError, failing_as
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.replicas.placement import Placement
from batchloom.pipelines.replicas.replica import Replica, start_replica
from batchloom.pipelines.replicas.results import in_order, result_table
from batchloom.pipelines.replicas.spanning import Claim, SpanningReplica
from batchloom.pipelines.replicas.turns import Turns
from batchloom.pipelines.stages.tokenize import tokenizer_of
from batchloom.pipelines.stages.work import Work
from batchloom.pipelines.tasks.base import Prepared, Task
from batchloom.pipelines.telemetry.activity import Activity
from batchloom.pipelines.telemetry.exporter import ReplicaExporter
from batchloom.pipelines.telemetry.measures import Increments
from batchloom.pipelines.telemetry.metrics_table import Labels
from batchloom.pipelines.telemetry.usage import Timesheet, Usage
from batchloom.pipelines.watching.attempts import ROW_DEATHS, Attempt
from batchloom.pipelines.watching.roster import REPORT_SECONDS, Roster, this_replica

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from batchloom.models import Tokenizer


class Infer:
    """Callable class for `map_batches`: units with requests in, units with results out."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        placement: Placement,
        groups: Sequence["PlacementGroup"],
        roster: Roster,
        labels: Labels,
    ) -> None:
        """`groups`: those of pipelines/replicas/spanning.py, where a replica's ranks are on several nodes. `labels`: of
        the metrics that are exported."""
        atexit.register(gc.freeze)  # or Python's end looks for cycles in all that was imported: a second of a core
        self._task, self._model, self._roster = settings["task"], settings["model"], roster
        self._turns = Turns()  # a unit whose replicas died is computed alone
        self._replica: Replica | None = None
        self._failure: Exception | None = None
        claim = Claim.of(groups) if groups else None  # waits for nodes: it has not begun to load
        self._timesheet = Timesheet()
        self._activity: Activity | None = None
        self._measures = Increments(lambda: self._look().measures())
        self._exporter = ReplicaExporter(labels, this_replica())
        threading.Thread(target=self._report, name="report", daemon=True).start()
        try:
            self._replica = _start(settings, placement, claim, roster)
            self._timesheet.ready()
        except (PipelineError, ModelError) as failure:
            # Raised by the first unit: of a constructor's exception Ray passes only the text to the driver.
            self._failure = failure
        self._ready_at = time.time()

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        if self._failure is not None:
            raise self._failure
        work = Work.from_batch(batch)
        if work.failure is not None:
            yield batch
            return
        assert work.requests is not None
        assert self._replica is not None
        attempt = self._roster.take(work.unit, _num_rows(work.requests))
        if attempt.failure is not None:
            yield work.failed(f"Computing {work.unit.stem}: {attempt.failure}").to_batch()
            return
        try:
            with failing_as(f"Computing {work.unit.stem}"), self._timesheet.unit():
                results = self._answer(work.unit, work.requests, attempt)
        except RankLostError as lost:
            _end(lost)
        measures = {**self._measures.take(), READY_AT: self._ready_at}
        if self._replica.agreement is not None:
            measures |= self._replica.agreement.measures()
        self._roster.done(work.unit, self._usage())
        yield work.with_results(results, measures).to_batch()

    def _answer(self, unit: Unit, requests: pa.Table, attempt: Attempt) -> pa.Table:
        """Compute a unit beside others, or, where its replicas died, alone and a span of rows after the other."""
        assert self._replica is not None
        tokenizer = tokenizer_of(self._model)
        if attempt.spans is None:
            with self._turns.beside_others():
                return answer(self._replica, self._task, unit, requests, tokenizer)
        results = [_killers(attempt.killers)]
        with self._turns.alone():
            for start, stop in attempt.spans:
                self._roster.enter(unit, start)
                own = pc.and_(pc.greater_equal(requests["row"], start), pc.less(requests["row"], stop))
                results.append(answer(self._replica, self._task, unit, requests.filter(own), tokenizer))
                self._roster.leave(unit, start)
        return in_order(pa.concat_tables(results))

    def _look(self) -> Activity:
        """Return what the model did so far. Raises: RankLostError."""
        assert self._replica is not None
        self._activity = self._replica.activity()
        return self._activity

    def _usage(self) -> Usage:
        return self._timesheet.usage(0.0 if self._activity is None else self._activity.busy_seconds)

    def _report(self) -> None:
        """Tell the roster and the metrics, for ever, that this process runs, and what its model did."""
        while True:
            try:
                activity = None if self._replica is None else self._look()
            except RankLostError as lost:
                _end(lost)
            self._roster.report(0 if activity is None else activity.num_steps, self._usage())
            self._exporter.tell(self._usage(), activity)
            time.sleep(REPORT_SECONDS)


def _num_rows(requests: pa.Table) -> int:
    return (pc.max(requests["row"]).as_py() if requests.num_rows else -1) + 1


def _killers(rows: Sequence[int]) -> pa.Table:
    """Return failed requests for the rows that end the process which computes them."""
    message = (
        f"The process that computed this row and nothing else ended {ROW_DEATHS} times without an exception, or made "
        "no step for limits.stall_minutes. Look at the text; the log of Ray's worker may have more."
    )
    error = vars(RowError("infer", "killed_the_process", message))
    return result_table(row=list(rows), piece=[0] * len(rows), error=[error] * len(rows))


def _start(settings: Mapping[str, Any], placement: Placement, claim: Claim | None, roster: Roster) -> Replica:
    """Start a replica. Where a rank is lost, end this process: a new start may succeed.

    Raises: JobError after too many starts; ModelError or PipelineError where the model cannot be loaded.
    """
    refusal = roster.begin()
    if refusal is not None:
        raise JobError(refusal)
    try:
        with failing_as("Loading the model"):
            replica = load(settings, placement, claim)
    except RankLostError as lost:
        roster.lost(str(lost))
        _end(lost)
    roster.ready()
    return replica


def load(settings: Mapping[str, Any], placement: Placement, claim: Claim | None) -> Replica:
    """Load a replica on this node, or on those that were claimed.

    Raises: RankLostError; JobError, ModelError or what else keeps the model from being loaded.
    """
    settings = {**settings, "probe_answers": cluster.fetched(settings["probe_answers"])}
    if claim is not None:
        return SpanningReplica(settings, placement, claim)
    num_threads = placement.threads_per_rank(*cluster.this_node())
    return start_replica(**settings, num_threads=num_threads, gpu_share=placement.gpu_share)


def _end(lost: RankLostError) -> NoReturn:
    """End this process, so that Ray starts another actor and gives it the units in flight.

    After an exception Ray would blame the unit and not retry it.
    """
    print(lost, file=sys.stderr, flush=True)  # into Ray's log of this actor
    os._exit(1)


def answer(replica: Replica, task: Task, unit: Unit, requests: pa.Table, tokenizer: "Tokenizer") -> pa.Table:
    """Return the final answers to a unit's requests, after as many rounds as the task makes follow-up requests.

    Follow-ups come from generating tasks alone: an engine orders them itself, so they have no buckets.
    """
    results = replica.answer(unit, requests)
    while (more := task.follow_up(_whole_rows(results), tokenizer)) is not None:
        again = pa.concat_arrays([more.requests["row"].combine_chunks(), pa.array(more.errors, pa.int32())])
        kept = results.filter(pc.invert(pc.is_in(results["row"], again)))
        results = in_order(pa.concat_tables([kept, replica.answer(unit, more.requests), _error_results(more)]))
    return results


def _whole_rows(results: pa.Table) -> pa.Table:
    """Return the results of rows without an error: where one of a row's pieces failed, the others make no answer."""
    failed = results.filter(pc.is_valid(results["error"]))["row"]
    return results.filter(pc.invert(pc.is_in(results["row"], failed.combine_chunks())))


def _error_results(prepared: Prepared) -> pa.Table:
    """Return failed requests for the rows that a later round cannot ask about."""
    errors = [vars(error) for error in prepared.errors.values()]
    return result_table(row=list(prepared.errors), piece=[0] * len(errors), error=errors)
