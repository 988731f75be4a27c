"""Stream units through Ray Data. It decides where work runs, and does not know what is done to a row.

    stretches -> read -> tokenize -> | infer (pool of replicas) | -> write -> records

A row of the dataset is a unit (stages/work.py), and every stage is `map_batches(batch_size=1)`: one unit a call.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset

from batchloom.models.errors import ModelError
from batchloom.pipelines import cluster
from batchloom.pipelines.errors import JobError, PipelineError
from batchloom.pipelines.ledger import ledger
from batchloom.pipelines.metrics import Event, UnitFailed, UnitRecord
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.replicas import probe, spanning
from batchloom.pipelines.replicas.placement import STAGE_CPUS, Placement, place
from batchloom.pipelines.stages.infer import Infer
from batchloom.pipelines.stages.read import Read, stretches
from batchloom.pipelines.stages.retry import Retry
from batchloom.pipelines.stages.tokenize import Tokenize, bucket_tokens
from batchloom.pipelines.stages.write import Write, from_outcome
from batchloom.pipelines.watching.pace import Pace
from batchloom.pipelines.watching.pump import Pump
from batchloom.pipelines.watching.roster import Roster
from batchloom.pipelines.watching.watchdog import Need, Watchdog

RAYS_ADVICE = "\nFailed to apply UDF"  # Ray appends advice that begins so to an error's message
READ_BLOCKS = 2000  # at most so many read tasks
TICK_SECONDS = 1.0  # to wait for a batch before looking at what else there is to say
KEPT = "Finished parts are kept; the same command goes on from there."


def stream(
    job: JobPlan, pending: Sequence[Unit], retry: Retry | None, on_event: Callable[[Event], None]
) -> Iterator[tuple[UnitRecord | UnitFailed, dict[str, float]]]:
    """Yield a record and measures for each pending unit as soon as its part is written, or why it failed, in no order.

    While none is, `on_event` is told of what is waited for, and of replicas that had to be started again.

    Raises:
        PipelineError, ModelError: what a stage raised.
        JobError: anything else that ended the stream; its message is the innermost cause's.
    """
    engine, limits = job.config.engine, job.config.limits
    with cluster.connected(), _translated_errors():
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        placement = place(engine, nodes)
        roster = Roster(limits.max_unit_attempts)
        need = Need.of(placement, engine.tensor_parallel, engine.replicas.min)
        answers = _probe_answers(job, placement)
        with spanning.groups(placement, engine.tensor_parallel) as groups:
            dataset = _dataset(job, pending, retry, placement, groups, roster, answers)
            watchdog, pump = Watchdog(roster, need, limits), Pump(lambda: _batches(dataset))
            try:
                with watchdog, pump:
                    for batch in _taken(pump, watchdog, Pace(limits.quiet_seconds), on_event):
                        for outcome in batch["outcome"].to_pylist():
                            yield from_outcome(outcome)
            finally:
                if watchdog.is_running or pump.is_running:
                    cluster.stay_disconnected()


def _batches(dataset: Dataset) -> Iterator[Any]:
    """Run the dataset, and yield Arrow tables."""
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _taken(pump: Pump[Any], watchdog: Watchdog, pace: Pace, on_event: Callable[[Event], None]) -> Iterator[Any]:
    """Yield what the pump brings. Meanwhile report silences, and end the job where Ray is gone."""
    while True:
        try:
            batch = pump.take(TICK_SECONDS)
        except StopIteration:
            return
        for ended in watchdog.ended():
            on_event(ended)
        if batch is not None:
            pace.finished()
            yield batch
            continue
        if (loss := watchdog.loss()) is not None:
            pump.abandon()
            raise JobError(f"{loss}\n{KEPT}")
        if pace.is_due():
            on_event(watchdog.waiting(pace.quiet_seconds))


def _probe_answers(job: JobPlan, placement: Placement) -> probe.Answers | None:
    """Return a single rank's answers to the probe, where replicas have several: from the output folder, or computed
    now on any node."""
    engine, record = job.config.engine, job.job_record()
    if engine.tensor_parallel == 1 or not engine.probe:
        return None
    answers = ledger.read_probe(job.output, record)
    if answers is None:
        compute = ray.remote(num_cpus=1)(probe.reference)
        answers = ray.get(compute.remote(job.checkpoint.pinned, job.task.architecture, placement.cores_per_node))
        ledger.keep_probe(job.output, record, answers)
    return answers


def _dataset(
    job: JobPlan,
    pending: Sequence[Unit],
    retry: Retry | None,
    placement: Placement,
    groups: Sequence[Any],
    roster: Roster,
    probe_answers: probe.Answers | None,
) -> Dataset:
    config, engine = job.config, job.config.engine
    rows = [{"units": json.dumps([asdict(unit) for unit in stretch])} for stretch in stretches(job.shards, pending)]
    read = Read(job.schema, dict(config.input.storage_options), config.input.paths[0], job.patience)
    compute_once = engine.compute_once and not job.generation.get("do_sample")  # samples are drawn with the row's seed
    num_tokens = bucket_tokens(job.task, engine.max_batch_tokens, placement.device)
    tokenize = Tokenize(job.task, job.checkpoint.pinned, job.keep_columns, num_tokens, compute_once, retry)
    infer: dict[str, Any] = {
        "task": job.task,
        "model": job.checkpoint.pinned,
        "dtype": engine.dtype,
        "device": placement.device,
        "tensor_parallel": engine.tensor_parallel,
        "num_threads": placement.threads_per_rank,
        "max_batch_tokens": engine.max_batch_tokens,
        "seed": config.seed,
        "probe_answers": probe_answers,
    }
    write = Write(job.task, job.checkpoint.pinned, job.output, job.fingerprint, job.job_record()["batchloom"])
    one_unit: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    pool = ActorPoolStrategy(
        min_size=engine.replicas.min,
        max_size=placement.max_replicas,
        max_concurrent_calls_per_actor=engine.units_in_flight,
        enable_true_multi_threading=True,
        max_tasks_in_flight_per_actor=2 * engine.units_in_flight,  # below 1.75 times the calls the pool never grows
    )
    return (
        ray.data.from_items(rows, override_num_blocks=min(len(rows), READ_BLOCKS))
        .map_batches(read, num_cpus=STAGE_CPUS, **one_unit)
        .map_batches(tokenize, num_cpus=STAGE_CPUS, **one_unit)
        .map_batches(
            Infer,
            fn_constructor_args=(infer, groups, roster),
            compute=pool,
            num_cpus=placement.num_cpus,
            num_gpus=placement.num_gpus,
            **one_unit,
        )
        .map_batches(write, num_cpus=STAGE_CPUS, **one_unit)
    )


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Replace Ray's nested errors by the one inside that says what went wrong: ours, else the innermost."""
    try:
        yield
    except ray.exceptions.RayError as error:  # may be a PipelineError too: Ray derives a class from both
        ours = (e for e in _causes(error) if not isinstance(e, ray.exceptions.RayError))
        known = next((e for e in ours if isinstance(e, PipelineError | ModelError)), None)
        if known is not None:
            raise type(known)(str(known).partition(RAYS_ADVICE)[0]) from error
        innermost = list(_causes(error))[-1]
        raise JobError(f"{type(innermost).__name__}: {innermost}\n{KEPT}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, its cause, the cause of that, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        inner = getattr(seen, "cause", None)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
