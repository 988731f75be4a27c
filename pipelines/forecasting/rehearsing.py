"""Rehearse some rows of a job: one replica computes them as a run does, to know how long all will take.

    loading | 16 rows | 64 rows | 256 rows | 1,024 rows
                                 ^ a          ^ b          seconds for a row: (b - a) / (1,024 - 256)

Rounds grow until one takes long enough. Between two of them, what every round has at its beginning and at its end (an
engine that fills and drains) cancels out: a run has it once. The first round warms up. Nothing is written.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import TaskPoolStrategy

from batchloom import models
from batchloom.models.errors import RankLostError
from batchloom.pipelines import cluster
from batchloom.pipelines.errors import JobError, failing_as
from batchloom.pipelines.forecasting.expected import Values, mean
from batchloom.pipelines.forecasting.rehearsal import Rehearsal, Round
from batchloom.pipelines.forecasting.sample import Sample
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.replicas import spanning
from batchloom.pipelines.replicas.placement import STAGE_CPUS, Placement, place
from batchloom.pipelines.replicas.replica import Replica
from batchloom.pipelines.running.stages import settings_of, tokenize_of
from batchloom.pipelines.running.stream import assembler, translated_errors
from batchloom.pipelines.stages.infer import answer, load
from batchloom.pipelines.stages.tokenize import tokenizer_of
from batchloom.pipelines.stages.work import Work
from batchloom.pipelines.stages.write import Write
from batchloom.pipelines.telemetry.measures import Increments
from batchloom.pipelines.watching.memory_kills import MemoryKills
from batchloom.pipelines.watching.pump import Pump
from batchloom.pipelines.watching.watchdog import LOOK_SECONDS

FIRST_ROUND = 16  # rows
GROWTH = 4  # of a round over the one before
MOST_ROWS = FIRST_ROUND * (1 + GROWTH + GROWTH**2 + GROWTH**3)  # 1,360
ENOUGH_SECONDS = 10.0  # for a round to be the last one
MOST_SECONDS = 300.0  # that a round may be expected to take
MOST_TASKS = 64  # of a stage, at its start: a worker for each core beside a replica


@dataclass(frozen=True)
class _Played:
    """Rounds, the answers to all of their rows, and seconds of a core that the last one took beside the replica."""

    rounds: Sequence[Round]
    answers: pa.Table
    stage_seconds: float


def rehearse(job: JobPlan, sample: Sample, all_rows: float, num_units: int, num_rows: int = MOST_ROWS) -> Rehearsal:
    """Compute at most `num_rows` rows of the sample on one replica. `all_rows`: that a run has to answer, in so many
    units.

    Raises:
        ConfigError: no node can ever hold a replica.
        ModelError, JobError: the model cannot be loaded, or breaks; no row of the sample is chosen.
    """
    if not sample.rows.num_rows:
        raise JobError("No row of the sample is chosen, so there is none to compute. Look at more rows: --sample.")
    began = time.monotonic()
    with cluster.connected(), translated_errors():
        nodes = cluster.look()
        placement = place(job.config.engine, nodes)
        with spanning.groups(placement) as groups:
            actor: Any = ray.remote(num_cpus=placement.num_cpus, num_gpus=placement.num_gpus)(RehearsalReplica)
            replica = actor.remote(settings_of(job, placement.device), placement, groups)
            try:
                loading = replica.load.remote()
                _start_stages(num_units, placement.most_readers(nodes))
                told = _loaded(loading, job.config.engine.replicas.wait_minutes)
                startup_seconds = time.monotonic() - began
                played = _play(job, sample, placement.device, replica, num_rows)
            finally:
                ray.kill(replica)
    kinds, reasons = (pc.struct_field(played.answers["error"], "kind"), played.answers["finish_reason"])
    by_kind = {kind: _is(kinds, kind) for kind in kinds.drop_null().unique().to_pylist()}
    return Rehearsal(
        **told,
        dtype=job.dtype_on(placement.device),
        num_rows=played.answers.num_rows,
        startup_seconds=startup_seconds,
        rounds=played.rounds,
        all_rows=all_rows,
        num_units=num_units,
        output_tokens=mean(played.answers["num_output_tokens"].to_numpy().astype(float), all_rows),
        errors={kind: mean(has, all_rows) for kind, has in by_kind.items()},
        at_length=mean(_is(reasons, "length"), all_rows),
        stage_seconds_a_row=played.stage_seconds / played.rounds[-1].num_rows,
        shares_cpus=placement.device == "cpu",
    )


def _start_stages(num_units: int, readers: int | None) -> None:
    """Run a dataset of stages that do nothing. In a run Ray Data's actors and the workers of its stages start while the
    replica loads, and on few cores it loads half as fast. Raises: JobError where memory lacks for them."""
    num_tasks = min(num_units, MOST_TASKS)
    rows = ray.data.range(num_tasks, override_num_blocks=num_tasks)
    for _ in range(2):  # stages before the replica
        pool = TaskPoolStrategy(readers)
        rows = rows.map_batches(_nothing, compute=pool, num_cpus=STAGE_CPUS, batch_size=1, batch_format="pyarrow")
    kills = MemoryKills()
    done: Pump[Any] = Pump(lambda: iter(rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)))
    with done:
        while True:
            try:
                batch = done.take(LOOK_SECONDS)
            except StopIteration:
                return
            if batch is None:
                kills.look([])
            if (loss := kills.loss()) is not None:
                raise JobError(loss)


def _nothing(batch: pa.Table) -> pa.Table:
    return batch


def _loaded(loading: Any, wait_minutes: float) -> dict[str, Any]:
    try:
        told: dict[str, Any] = ray.get(loading, timeout=wait_minutes * 60 or None)
    except ray.exceptions.GetTimeoutError:
        raise JobError(
            f"No replica was there after engine.replicas.wait_minutes ({wait_minutes:g}): no node had room, or the "
            "model loads for longer. Look at `ray status`, or wait longer."
        ) from None
    return told


def _play(job: JobPlan, sample: Sample, device: str, replica: Any, num_rows: int) -> _Played:
    tokenize, tokenizer = tokenize_of(job, device), models.load_tokenizer(job.checkpoint.pinned)
    write = Write(job.task, job.checkpoint.pinned, assembler(job))
    rows_of_unit = max(1, job.num_rows // job.num_units)
    rounds, answers, stage_seconds = list[Round](), list[pa.Table](), 0.0
    for numbers in _drawn(sample.rows.num_rows, num_rows):
        if rounds and not _is_wanted(rounds[-1], len(numbers)):
            break
        began = time.process_time()
        units = [numbers[start : start + rows_of_unit] for start in range(0, len(numbers), rows_of_unit)]
        works = [tokenize.prepare(sample.work(sorted(unit)), tokenizer) for unit in units]
        batches = [work.to_batch() for work in works]
        stage_seconds = time.process_time() - began
        seconds, measures, answered = ray.get(replica.answer.remote(batches, job.config.engine.units_in_flight))
        began = time.process_time()
        answers += [write.finish(Work.from_batch(batch), tokenizer) for batch in answered]
        stage_seconds += time.process_time() - began
        rounds.append(Round(num_rows=len(numbers), seconds=seconds, measures=measures))
    return _Played(rounds, pa.concat_tables(answers), stage_seconds)


def _drawn(num_rows: int, most: int) -> Iterator[list[int]]:
    """Yield the numbers of each round's rows: drawn by chance, so that each round is like the sample."""
    drawn = np.random.default_rng(0).permutation(num_rows)[:most].tolist()
    size = FIRST_ROUND
    while drawn:
        if len(drawn) < size + FIRST_ROUND:  # what is left is no round of its own
            size = len(drawn)
        yield drawn[:size]
        drawn, size = drawn[size:], size * GROWTH


def _is_wanted(last: Round, num_rows: int) -> bool:
    """Return whether a round of so many rows is to follow."""
    return last.seconds < ENOUGH_SECONDS and last.seconds / last.num_rows * num_rows < MOST_SECONDS


def _is(column: pa.ChunkedArray, value: str) -> Values:
    """[rows]: 1 where the column has the value."""
    flags: Values = pc.fill_null(pc.equal(column, value), False).to_numpy().astype(np.float64)
    return flags


class RehearsalReplica:
    """The actor: one replica that answers units as that of Infer does."""

    _replica: Replica

    def __init__(self, settings: Mapping[str, Any], placement: Placement, groups: Sequence[Any]) -> None:
        self._settings, self._placement, self._groups = settings, placement, groups

    def load(self) -> dict[str, Any]:
        """Load the model. Return the seconds, what it is on, and the CPUs that are left for other stages."""
        from batchloom.models.machines import name_of_this

        claim = spanning.Claim.of(self._groups) if self._groups else None
        began = time.monotonic()
        try:
            with failing_as("Loading the model"):
                self._replica = load(self._settings, self._placement, claim)
        except RankLostError as lost:
            raise JobError(str(lost)) from lost
        node, nodes = cluster.this_node()
        num_threads = self._placement.threads_per_rank(node, nodes) * self._placement.num_ranks
        return {
            "loading_seconds": time.monotonic() - began,
            "machine": name_of_this(self._placement.device),
            "num_cpus": num_threads,
        }

    def answer(
        self, batches: Sequence[pa.Table], units_in_flight: int
    ) -> tuple[float, dict[str, float], list[pa.Table]]:
        """Answer units, as many at a time as in a run; return seconds, measures, and the units with results."""
        works = [Work.from_batch(batch) for batch in batches]
        tokenizer, task = tokenizer_of(self._settings["model"]), self._settings["task"]
        measures = Increments(lambda: self._replica.activity().measures())
        measures.take()

        def answered(work: Work) -> pa.Table:
            assert work.requests is not None
            return answer(self._replica, task, work.unit, work.requests, tokenizer)

        began = time.monotonic()
        with ThreadPoolExecutor(units_in_flight) as pool:
            results = list(pool.map(answered, works))
        seconds = time.monotonic() - began
        done = [work.with_results(result, {}).to_batch() for work, result in zip(works, results, strict=True)]
        return seconds, measures.take(), done
