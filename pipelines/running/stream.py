"""Stream units through Ray Data. It decides where work runs, and does not know what is done to a row.

    stretches -> read -> tokenize -> | infer (pool of replicas) | -> write -> records
                                          answers of all units of a part -> assemble -> record

A row of the dataset is a unit (stages/work.py), and every stage is `map_batches(batch_size=1)`: one unit a call.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy

from batchloom.models.errors import ModelError
from batchloom.pipelines import cluster
from batchloom.pipelines.config import EngineConfig
from batchloom.pipelines.counts import Counts, PartRecord, UnitRecord
from batchloom.pipelines.errors import JobError, PipelineError
from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.ledger import kept_probe
from batchloom.pipelines.ledger.resume import Pending
from batchloom.pipelines.metrics import Event, Replicas, UnitFailed, Waiting
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.replicas import probe, spanning
from batchloom.pipelines.replicas.placement import STAGE_CPUS, Placement, place
from batchloom.pipelines.running.assembly import Assembly
from batchloom.pipelines.running.stages import read_of, reader_of, settings_of, tokenize_of
from batchloom.pipelines.stages.assemble import Assemble
from batchloom.pipelines.stages.infer import Infer
from batchloom.pipelines.stages.read import stretches
from batchloom.pipelines.stages.write import Write, from_outcome
from batchloom.pipelines.stores.storage import Store
from batchloom.pipelines.telemetry.exporter import JobExporter
from batchloom.pipelines.telemetry.metrics_table import Labels
from batchloom.pipelines.watching.environment import unready
from batchloom.pipelines.watching.memory_kills import said_of
from batchloom.pipelines.watching.pace import Pace
from batchloom.pipelines.watching.pump import Pump
from batchloom.pipelines.watching.ray_servers import RayServers, loss_of
from batchloom.pipelines.watching.roster import Roster
from batchloom.pipelines.watching.watchdog import Watchdog

if TYPE_CHECKING:
    from batchloom.models import PinnedModel

RAYS_ADVICE = "\nFailed to apply UDF"  # Ray appends advice that begins so to an error's message
READ_BLOCKS = 2000  # at most so many read tasks
MAX_STRETCHES = 8000  # about: what they are is in the driver's memory
MAX_JOINED = 64  # about: units that a stretch has, so that few chosen rows of each make one, and stretches left then
TELL_SECONDS = 10.0  # between two words about what replicas do with their time
TICK_SECONDS = 1.0  # to wait for a batch before looking at what else there is to say
KEPT = "Finished parts are kept; the same command goes on from there."


Made = tuple[UnitRecord | PartRecord | UnitFailed, dict[str, float]]


def stream(
    job: JobPlan, pending: Sequence[Pending], num_units: int, on_event: Callable[[Event], None]
) -> Iterator[Made]:
    """Yield the record and measures of each unit as soon as its answers are safe, and each part's when it is written,
    or why something failed, in no order. `num_units`: of all pending parts.

    While none is, `on_event` is told of what is waited for, and of replicas that had to be started again.

    Raises:
        PipelineError, ModelError: what a stage raised.
        JobError: anything else that ended the stream; its message is the innermost cause's.
    """
    with cluster.connected(), translated_errors():
        num_rows = sum(stop - start for one in pending for start, stop in one.missing)
        exporter = JobExporter(Labels.of(job.output.url), num_rows)

        def watch(event: Event) -> None:
            exporter.saw(event)
            on_event(event)

        for made, measures in _made(job, pending, num_units, watch):
            exporter.made(made, measures)
            yield made, measures


def _made(
    job: JobPlan, pending: Sequence[Pending], num_units: int, on_event: Callable[[Event], None]
) -> Iterator[Made]:
    """Yield and raise as `stream`."""
    assemble = assembler(job)
    assembly = Assembly(job, assemble, pending)
    if num_units:
        yield from _computed(job, pending, num_units, assemble, assembly, on_event)
    yield from _assembled(assembly, Pace(job.config.limits.quiet_seconds), on_event)


def _assembled(assembly: Assembly, pace: Pace, on_event: Callable[[Event], None]) -> Iterator[Made]:
    """Yield what becomes of the parts that are left when all units are computed, and report silences.

    Raises: JobError where Ray is gone, or no node came for too long.
    """
    servers = RayServers.of_this_driver()
    while assembly.is_busy:
        if not (silences := servers.silences()):  # or a look would wait for what is gone
            assembly.look_for_room()
        made: list[Made] = list(assembly.finished(TICK_SECONDS))
        yield from made
        if made:
            pace.finished()
        elif assembly.room_wait.is_news() or pace.is_due():
            lacking, seconds_left = assembly.lacking(), assembly.room_wait.seconds_left
            on_event(Waiting(pace.quiet_seconds, (), 0, lacking, seconds_left, assembling=assembly.parts))
        if not made and (reason := loss_of(silences) or assembly.vain_wait()) is not None:
            raise JobError(f"{reason}\n{KEPT}")


def _computed(
    job: JobPlan,
    pending: Sequence[Pending],
    num_units: int,
    assemble: Assemble,
    assembly: Assembly,
    on_event: Callable[[Event], None],
) -> Iterator[Made]:
    """Yield what becomes of the units, and meanwhile of parts. Raises: as `stream`."""
    engine, limits = job.config.engine, job.config.limits
    nodes = cluster.look()
    placement = place(engine, nodes)
    roster = Roster(limits.max_unit_attempts, num_units)
    answers = _probe_answers(job)
    with spanning.groups(placement) as groups:
        readers = None if job.selection else placement.most_readers(nodes)  # or reading may be most of the work
        dataset = _dataset(job, pending, num_units, assemble, placement, readers, groups, roster, answers)
        watchdog = Watchdog(roster, placement, limits, engine.replicas.wait_minutes)
        pump = Pump(lambda: _batches(dataset))
        try:
            with watchdog, pump:
                for batch in _taken(pump, watchdog, Pace(limits.quiet_seconds), on_event):
                    for outcome in [] if batch is None else batch["outcome"].to_pylist():
                        yield from _settled(*from_outcome(outcome), assembly)
                    yield from assembly.finished(0)
                on_event(watchdog.last_look())
        finally:
            if watchdog.is_running or pump.is_running:
                cluster.stay_disconnected()
            elif watchdog.loss() is None:
                roster.end()


def _settled(
    made: UnitRecord | PartRecord | UnitFailed, measures: dict[str, float], assembly: Assembly
) -> Iterator[Made]:
    """Yield what became of a unit; of one that is a whole part both records."""
    if isinstance(made, PartRecord):
        counts = {one.name: getattr(made, one.name) for one in fields(Counts)}
        yield UnitRecord(part=made.part, ranges=((0, made.num_covered),), **counts), measures
        yield made, {}
    else:
        if isinstance(made, UnitRecord):
            assembly.answered(made)
        yield made, measures


def _batches(dataset: Dataset) -> Iterator[Any]:
    """Run the dataset, and yield Arrow tables."""
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _taken(pump: Pump[Any], watchdog: Watchdog, pace: Pace, on_event: Callable[[Event], None]) -> Iterator[Any]:
    """Yield what the pump brings, or None after a while. Report silences, and end the job where Ray is gone."""
    told, told_at, looked_at = Replicas(0, 0), float("-inf"), float("-inf")
    while True:
        try:
            batch = pump.take(TICK_SECONDS)
        except StopIteration:
            return
        now = time.monotonic()
        if now - looked_at >= TICK_SECONDS:
            looked_at, seen = now, watchdog.replicas()
            is_news = (seen.num_ready, seen.num_starting) != (told.num_ready, told.num_starting)
            if is_news or now - told_at >= TELL_SECONDS:
                told, told_at = seen, now
                on_event(seen)
        for ended in watchdog.ended():
            on_event(ended)
        yield batch
        if batch is not None:
            pace.finished()
            watchdog.went_on()
            continue
        if (loss := watchdog.loss()) is not None:
            pump.abandon()
            raise JobError(f"{loss}\n{KEPT}")
        if (vain := watchdog.vain_wait() or watchdog.memory_loss()) is not None:
            raise JobError(f"{vain}\n{KEPT}")
        if watchdog.begins_to_wait() or pace.is_due():
            on_event(watchdog.waiting(pace.quiet_seconds))


def assembler(job: JobPlan) -> Assemble:
    """Return what makes the parts of a job."""
    answers = pa.schema([*job.task.output_fields(), *LEDGER_FIELDS])
    kept = reader_of(job, job.keep_columns)
    return Assemble(job.output, kept, answers, job.fingerprint, job.layout, version("batchloom"), job.config.output)


def _probe_answers(job: JobPlan) -> Any:
    """Return a single rank's answers to the probe in float32, where replicas have several ranks or compute in int8:
    from the output folder, or a reference to what a task computes now on any node, and keeps there."""
    engine = job.config.engine
    if not engine.probe or (engine.tensor_parallel == 1 and engine.dtype != "int8"):
        return None
    answers = kept_probe.read_probe(job.output, job.job_record())
    if answers is not None:
        return answers
    compute = ray.remote(num_cpus=STAGE_CPUS)(_compute_probe)  # what replicas leave: they wait for it
    asked = probe.questions_for(engine.dtype)
    return compute.remote(job.checkpoint.pinned, job.task.architecture, asked, job.output, job.job_record())


def _compute_probe(
    model: "PinnedModel", architecture: str | None, asked: probe.Questions, output: Store, record: Mapping[str, Any]
) -> probe.Answers:
    node, _ = cluster.this_node()
    answers = probe.reference(model, architecture, max(1, int(node.get("CPU", 0))), asked)
    kept_probe.keep_probe(output, record, answers)
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
    pending: Sequence[Pending],
    num_units: int,
    assemble: Assemble,
    placement: Placement,
    readers: int | None,
    groups: Sequence[Any],
    roster: Roster,
    probe_answers: Any,
) -> Dataset:
    engine = job.config.engine
    units = (unit for one in pending if one.missing for unit in one.units(job))
    least = max(-(-num_units // MAX_STRETCHES), min(num_units // MAX_JOINED, MAX_JOINED) if job.selection else 1)
    rows = [{"stretch": stretch.to_json()} for stretch in stretches(units, job.shards_by_name, least)]
    read, tokenize = read_of(job), tokenize_of(job, placement.device)
    infer = settings_of(job, placement.device, probe_answers)
    write = Write(job.task, job.checkpoint.pinned, assemble)
    one_unit: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    beside: dict[str, Any] = {"num_cpus": STAGE_CPUS, "compute": TaskPoolStrategy(readers), **one_unit}
    return (
        ray.data.from_items(rows, override_num_blocks=min(len(rows), READ_BLOCKS))
        .map_batches(read, **beside)
        .map_batches(tokenize, **beside)
        .map_batches(
            Infer,
            fn_constructor_args=(infer, placement, groups, roster, Labels.of(job.output.url)),
            compute=_pool(engine, placement),
            num_cpus=placement.num_cpus,
            num_gpus=placement.num_gpus,
            **one_unit,
        )
        .map_batches(write, **beside)
    )


@contextmanager
def translated_errors() -> Iterator[None]:
    """Replace Ray's nested errors by the one inside that says what went wrong: ours, else the innermost."""
    try:
        yield
    except ray.exceptions.RayError as error:  # may be a PipelineError too: Ray derives a class from both
        ours = (e for e in _causes(error) if not isinstance(e, ray.exceptions.RayError))
        known = next((e for e in ours if isinstance(e, PipelineError | ModelError)), None)
        if known is not None:
            raise type(known)(str(known).partition(RAYS_ADVICE)[0]) from error
        if any(isinstance(one, ray.exceptions.RuntimeEnvSetupError) for one in _causes(error)):
            raise JobError(f"{unready(str(error))}\n{KEPT}") from error
        causes = list(_causes(error))
        if starved := [one for one in causes if isinstance(one, ray.exceptions.OutOfMemoryError)]:
            raise JobError(f"{said_of(starved[-1])}\n{KEPT}") from error
        with_words = [cause for cause in causes if str(cause)]  # Ray Data's SystemException has none
        innermost = (with_words or causes)[-1]
        raise JobError(f"{type(innermost).__name__}: {innermost}\n{KEPT}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, its cause, the cause of that, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        inner = getattr(seen, "cause", None)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
