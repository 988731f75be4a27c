"""Infer is the actor that Ray keeps a pool of: one replica, several units in flight. The replica orders the work."""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from batchloom.models.errors import ModelError, RankLostError
from batchloom.pipelines.errors import JobError, PipelineError, failing_as
from batchloom.pipelines.metrics import READY_AT
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.replicas.replica import Replica, start_replica
from batchloom.pipelines.replicas.results import in_order, result_table
from batchloom.pipelines.replicas.spanning import SpanningReplica
from batchloom.pipelines.replicas.starts import Starts
from batchloom.pipelines.stages.tokenize import tokenizer_of
from batchloom.pipelines.stages.work import Work
from batchloom.pipelines.tasks.base import Prepared, Task

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from batchloom.models import Tokenizer


class Infer:
    """Callable class for `map_batches`: units with requests in, units with results out."""

    def __init__(self, settings: Mapping[str, Any], groups: Sequence["PlacementGroup"], starts: Starts) -> None:
        """`groups`: those of pipelines/replicas/spanning.py, where a replica's ranks are on several nodes."""
        self._task, self._model = settings["task"], settings["model"]
        try:
            self._replica = _start(settings, groups, starts)
        except (PipelineError, ModelError) as failure:
            # Raised by the first unit: of a constructor's exception Ray passes only the text to the driver.
            self._failure: Exception | None = failure
        else:
            self._failure = None
        self._ready_at = time.time()

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        if self._failure is not None:
            raise self._failure
        work = Work.from_batch(batch)
        if work.failure is not None:
            yield batch
            return
        assert work.requests is not None
        try:
            with failing_as(f"Computing {work.unit.stem}"):
                results = answer(self._replica, self._task, work.unit, work.requests, tokenizer_of(self._model))
        except RankLostError as lost:
            _end(lost)
        measures = {**self._replica.measures(), READY_AT: self._ready_at}
        yield work.with_results(results, measures).to_batch()


def _start(settings: Mapping[str, Any], groups: Sequence["PlacementGroup"], starts: Starts) -> Replica:
    """Start a replica. Where a rank is lost, end this process: a new start may succeed.

    Raises: JobError after too many starts; ModelError or PipelineError where the model cannot be loaded.
    """
    refusal = starts.begin()
    if refusal is not None:
        raise JobError(refusal)
    try:
        with failing_as("Loading the model"):
            replica: Replica = SpanningReplica(settings, groups) if groups else start_replica(**settings)
    except RankLostError as lost:
        starts.lost(str(lost))
        _end(lost)
    starts.ready()
    return replica


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
    while (more := task.follow_up(results.filter(pc.is_null(results["error"])), tokenizer)) is not None:
        again = pa.concat_arrays([more.requests["row"].combine_chunks(), pa.array(more.errors, pa.int32())])
        kept = results.filter(pc.invert(pc.is_in(results["row"], again)))
        results = in_order(pa.concat_tables([kept, replica.answer(unit, more.requests), _error_results(more)]))
    return results


def _error_results(prepared: Prepared) -> pa.Table:
    """Return failed requests for the rows that a later round cannot ask about."""
    errors = [vars(error) for error in prepared.errors.values()]
    return result_table(row=list(prepared.errors), piece=[0] * len(errors), error=errors)
