"""Stream units through Ray Data. It decides where work runs, and does not know what is done to a row.

    stretches -> read -> tokenize -> | infer (pool of replicas) | -> write -> records

A row of the dataset is a unit (stages/work.py), and every stage is `map_batches(batch_size=1)`: one unit a call.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import ray
from ray.data import ActorPoolStrategy, Dataset

from batchloom.models.errors import ModelError
from batchloom.pipelines import cluster
from batchloom.pipelines.config import EngineConfig
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
from batchloom.pipelines.storage import Store
from batchloom.pipelines.watching.pace import Pace
from batchloom.pipelines.watching.pump import Pump
from batchloom.pipelines.watching.roster import Roster
from batchloom.pipelines.watching.watchdog import Watchdog

if TYPE_CHECKING:
    from batchloom.models import PinnedModel

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
        placement = place(engine, cluster.look())
        roster = Roster(limits.max_unit_attempts)
        answers = _probe_answers(job)
        with spanning.groups(placement) as groups:
            dataset = _dataset(job, pending, retry, placement, groups, roster, answers)
            watchdog = Watchdog(roster, placement, limits, engine.replicas.wait_minutes)
            pump = Pump(lambda: _batches(dataset))
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
        if (vain := watchdog.vain_wait()) is not None:
            raise JobError(f"{vain}\n{KEPT}")
        if watchdog.begins_to_wait() or pace.is_due():
            on_event(watchdog.waiting(pace.quiet_seconds))


def _probe_answers(job: JobPlan) -> Any:
    """Return a single rank's answers to the probe, where replicas have several: from the output folder, or a reference
    to what a task computes now on any node, and keeps there."""
    if job.config.engine.tensor_parallel == 1 or not job.config.engine.probe:
        return None
    answers = ledger.read_probe(job.output, job.job_record())
    if answers is not None:
        return answers
    compute = ray.remote(num_cpus=STAGE_CPUS)(_compute_probe)  # what replicas leave: they wait for it
    return compute.remote(job.checkpoint.pinned, job.task.architecture, job.output, job.job_record())


def _compute_probe(
    model: "PinnedModel", architecture: str | None, output: Store, record: Mapping[str, Any]
) -> probe.Answers:
    node, _ = cluster.this_node()
    answers = probe.reference(model, architecture, num_threads=max(1, int(node.get("CPU", 0))))
    ledger.keep_probe(output, record, answers)
    return answers


def _pool(engine: EngineConfig, placement: Placement) -> ActorPoolStrategy:
    """Return the pool that Ray Data grows while units wait and nodes have room, and that shrinks with them.

    What it asks for and nobody has reaches Ray's autoscaler: replicas that wait for a node, and requests of Ray Data's.
    """
    return ActorPoolStrategy(
        min_size=placement.pool_min,
        max_size=placement.max_replicas,
        max_concurrent_calls_per_actor=engine.units_in_flight,
        enable_true_multi_threading=True,
        max_tasks_in_flight_per_actor=2 * engine.units_in_flight,  # below 1.75 times the calls the pool never grows
    )


def _dataset(
    job: JobPlan,
    pending: Sequence[Unit],
    retry: Retry | None,
    placement: Placement,
    groups: Sequence[Any],
    roster: Roster,
    probe_answers: Any,
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
        "max_batch_tokens": engine.max_batch_tokens,
        "seed": config.seed,
        "probe_answers": probe_answers,
    }
    write = Write(job.task, job.checkpoint.pinned, job.output, job.fingerprint, job.job_record()["batchloom"])
    one_unit: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    return (
        ray.data.from_items(rows, override_num_blocks=min(len(rows), READ_BLOCKS))
        .map_batches(read, num_cpus=STAGE_CPUS, **one_unit)
        .map_batches(tokenize, num_cpus=STAGE_CPUS, **one_unit)
        .map_batches(
            Infer,
            fn_constructor_args=(infer, placement, groups, roster),
            compute=_pool(engine, placement),
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
