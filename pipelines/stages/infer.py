"""Infer is the actor that Ray keeps a pool of: one replica, several units in flight. Policy is the engine's."""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

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


class Infer:
    """Callable class for `map_batches`: units with requests in, units with results out."""

    def __init__(self, settings: Mapping[str, Any], groups: Sequence[Any], starts: Starts) -> None:
        """`groups`: those of pipelines/replicas/spanning.py, where a replica's ranks are on several nodes."""
        self._task, self._model = settings["task"], settings["model"]
        try:
            self._replica = _start(settings, groups, starts)
        except (PipelineError, ModelError) as failure:
            # Told by the first unit: of what a constructor raises, Ray gives the driver a text and no error.
            self._failure: Exception | None = failure
        else:
            self._failure = None
        self._ready_at = time.time()

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        if self._failure is not None:
            raise self._failure
        work = Work.from_batch(batch)
        assert work.requests is not None
        try:
            with failing_as(f"Computing {work.unit.stem}"):
                results = answer(self._replica, self._task, work.unit, work.requests, tokenizer_of(self._model))
        except RankLostError as lost:
            _end(lost)
        measures = {**self._replica.measures(), READY_AT: self._ready_at}
        yield work.with_results(results, measures).to_batch()


def _start(settings: Mapping[str, Any], groups: Sequence[Any], starts: Starts) -> Replica:
    """A replica, or what keeps it from being one. A rank that is lost ends this process: a new start may do better."""
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
    """Ends this process: Ray starts another actor and gives it the units in flight.

    An exception would be taken for the work's own fault, and not be tried again.
    """
    print(lost, file=sys.stderr, flush=True)  # into Ray's log of this actor
    os._exit(1)


def answer(replica: Replica, task: Task, unit: Unit, requests: pa.Table, tokenizer: Any) -> pa.Table:
    """The final answers to a unit's requests: asked again for as long as the task makes new requests of them."""
    results = replica.answer(unit, requests)
    while (more := task.follow_up(results.filter(pc.is_null(results["error"])), tokenizer)) is not None:
        again = pa.concat_arrays([more.requests["row"].combine_chunks(), pa.array(more.errors, pa.int32())])
        kept = results.filter(pc.invert(pc.is_in(results["row"], again)))
        results = in_order(pa.concat_tables([kept, replica.answer(unit, more.requests), _error_results(more)]))
    return results


def _error_results(prepared: Prepared) -> pa.Table:
    """Rows that a later round cannot ask about, as failed requests."""
    errors = [vars(error) for error in prepared.errors.values()]
    return result_table(row=list(prepared.errors), piece=[0] * len(errors), error=errors)
