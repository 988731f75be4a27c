"""The assembly of parts as Ray tasks, beside the stream: as soon as all answers to a part are there, it is written.

A task that is lost, with its node or for a lack of memory, is tried again after a while, and in the end its part fails
alone: limits.max_unit_attempts. Ray's own retries are off, as they never end where memory lacks.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray

from batchloom.models.errors import ModelError
from batchloom.pipelines import cluster
from batchloom.pipelines.counts import PartRecord, UnitRecord
from batchloom.pipelines.errors import JobError, PipelineError
from batchloom.pipelines.ledger.answers import Saved
from batchloom.pipelines.ledger.resume import Pending
from batchloom.pipelines.metrics import PartFailed
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.planning.shards import sources_of
from batchloom.pipelines.stages.assemble import Assemble, Order
from batchloom.pipelines.telemetry.measures import STAGES, Stopwatch
from batchloom.pipelines.watching.room_wait import RoomWait

MAX_TASKS = 16  # a node
TASK_CPUS = 0.001  # it waits for stores most of the time, and must find room beside replicas
TASK_BYTES = 5 << 26  # that a task takes beside its part, its process included (docs/log.md)
BYTES_STEP = 1 << 27  # tasks that ask Ray for as much as each other share workers
MAX_BYTES = MAX_TASKS * 3 * BYTES_STEP  # of these: 16 of small parts, or 8 of 256 MiB; one may always run
LOOK_SECONDS = 20.0  # between two looks at the nodes, which come and go
ROOM_SECONDS = 5.0  # the same while nothing but parts is left, so that nobody else looks
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds from a loss to the next attempt, twice as many each time
LONGEST_TASK = 900.0  # seconds, unless limits.stall_minutes is set: then a task is taken for lost


@dataclass(frozen=True)
class _Attempt:
    """A part to assemble."""

    pending: Pending
    memory: int
    """Bytes that it may take."""
    num_lost: int = 0
    """Attempts that were lost."""
    due: float = 0.0
    """When it may start, by time.monotonic."""
    started: float = 0.0

    def again(self) -> "_Attempt":
        wait = min(FIRST_WAIT * 2**self.num_lost, LONGEST_WAIT)
        return replace(self, num_lost=self.num_lost + 1, due=time.monotonic() + wait)


class Assembly:
    """Counts which parts are complete, and has them assembled."""

    def __init__(self, job: JobPlan, assemble: Assemble, pending: Iterable[Pending]) -> None:
        self._job, self._fingerprint = job, job.fingerprint
        self._assemble = assemble
        self._running: dict[Any, _Attempt] = {}
        self._wait_minutes, self._most_nodes = job.config.engine.replicas.wait_minutes, 0
        self.room_wait = RoomWait(self._wait_minutes, time.monotonic)
        self._look()
        minutes = job.config.limits.stall_minutes
        self._patience = LONGEST_TASK if minutes is None else 60 * minutes
        self._left: dict[str, int] = {}
        self._pending: dict[str, Pending] = {}
        self._saved: dict[str, list[Saved]] = {}
        self._ready: deque[_Attempt] = deque()
        for one in pending:
            if one.missing:
                self._left[one.part.id] = sum(stop - start for start, stop in one.missing)
                self._pending[one.part.id] = one
            else:
                self._ready.append(self._attempt(one))

    @property
    def is_busy(self) -> bool:
        return bool(self._ready or self._running)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts that are assembled now, and then of those that wait for it."""
        return tuple(self._assemble.name(attempt.pending.part) for attempt in [*self._running.values(), *self._ready])

    def look_for_room(self) -> None:
        """Look, now and then, whether nodes run tasks: called while nothing but parts is left, and Ray answers."""
        if time.monotonic() - self._looked >= ROOM_SECONDS:
            self._look()

    def lacking(self) -> tuple[str, ...]:
        """Return in words what the cluster lacks, where no node runs tasks."""
        if self.room_wait.seconds_left is None:
            return ()
        gone = self._most_nodes - self._num_nodes
        left = f"; {gone} of {self._most_nodes} nodes are gone" if gone else ""
        return (f"assembling parts needs logical CPUs, the cluster has none{left}",)

    def vain_wait(self) -> str | None:
        """Return why the job cannot go on, where no node that runs tasks has come for too long."""
        if not self.room_wait.is_over:
            return None
        waited = f"within {self._wait_minutes:g} minutes (engine.replicas.wait_minutes)"
        return (
            f"No node that can assemble parts came {waited}: {self.lacking()[0]}. All rows are computed. Give Ray more "
            "CPUs, or wait longer."
        )

    def answered(self, unit: UnitRecord) -> None:
        """Take note of a unit whose answers are saved."""
        self._left[unit.part] -= sum(stop - start for start, stop in unit.ranges)
        saved = self._saved.setdefault(unit.part, [])
        saved.append(Saved(unit.part, self._fingerprint, unit.ranges))
        if not self._left[unit.part]:
            pending = self._pending.pop(unit.part)
            everything = (*pending.saved, *self._saved.pop(unit.part))
            self._ready.append(self._attempt(replace(pending, missing=(), saved=everything)))

    def finished(self, seconds: float) -> Iterator[tuple[PartRecord | PartFailed, dict[str, float]]]:
        """Start what can be started, and yield what is done within so many seconds, with its measures."""
        if self._ready and time.monotonic() - self._looked >= LOOK_SECONDS:
            self._look()
        self._start()
        if not self._running:
            if self._ready:  # what was lost waits
                time.sleep(seconds)
            return
        done, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=seconds)
        for task in done:
            attempt = self._running.pop(task)
            try:
                yield ray.get(task)
            except ray.exceptions.RayError as error:
                yield from ((failed, {}) for failed in self._failed(attempt, error))
        now = time.monotonic()
        for task in [task for task, attempt in self._running.items() if now - attempt.started > self._patience]:
            ray.cancel(task, force=True)  # a process that is stopped does not hear it: it would write the same part
            overdue = TimeoutError(f"it had not ended after {self._patience:.0f} s")
            yield from ((failed, {}) for failed in self._failed(self._running.pop(task), overdue))

    def _look(self) -> None:
        nodes = cluster.look().nodes
        # A task that asks for more than any node has would wait for ever.
        self._room = min((int(node.get("memory", 0)) for node in nodes), default=0)
        self._num_nodes, self._looked = len(nodes), time.monotonic()
        self._most_nodes = max(self._most_nodes, self._num_nodes)
        has_room = any(node.get("CPU", 0) >= TASK_CPUS for node in nodes)
        self.room_wait.look(has_room)
        if not has_room:  # tasks that wait for a node are not stuck
            self._running = {task: replace(one, started=self._looked) for task, one in self._running.items()}

    def _start(self) -> None:
        now, num_bytes = time.monotonic(), sum(attempt.memory for attempt in self._running.values())
        most_tasks, most_bytes = MAX_TASKS * max(1, self._num_nodes), MAX_BYTES * max(1, self._num_nodes)
        for _ in range(len(self._ready)):
            attempt = self._ready[0]
            is_full = len(self._running) >= most_tasks or num_bytes + attempt.memory > most_bytes
            if self._running and is_full:
                return
            self._ready.popleft()
            if attempt.due > now:
                self._ready.append(attempt)
                continue
            task = _assembled.options(memory=min(attempt.memory, self._room))
            self._running[task.remote(self._assemble, self._order(attempt.pending))] = replace(attempt, started=now)
            num_bytes += attempt.memory

    def _failed(self, attempt: _Attempt, error: Exception) -> Iterator[PartFailed]:
        """Yield why the part failed, where it is not tried again."""
        part, reason = attempt.pending.part, getattr(error, "cause", error)
        if not isinstance(reason, PipelineError | ModelError):
            attempts = self._job.config.limits.max_unit_attempts
            if attempt.num_lost + 1 < attempts:
                self._ready.append(attempt.again())
                return
            times = "once" if attempts == 1 else f"{attempts} times in a row"
            last = str(reason).partition("\n")[0].rstrip(" .")  # Ray goes on with pages of advice
            reason = JobError(
                f"{self._assemble.name(part)} could not be assembled: the task was lost {times} "
                f"(limits.max_unit_attempts). The last loss: {type(reason).__name__}: {last}. Look for lost nodes, "
                "for a lack of memory on them, and for processes that are stopped."
            )
        yield PartFailed(part.spans[0].shard, part.spans[0].start, part.spans[-1].stop, str(reason))

    def _attempt(self, pending: Pending) -> _Attempt:
        shards = self._job.shards_by_name
        num_bytes = TASK_BYTES + sum(  # of the columns that are read as well: answers have about as many
            num_bytes
            for span in pending.part.spans
            for _, num_bytes in shards[span.shard].pieces(span.start, span.stop, with_kept=True)
        )
        return _Attempt(pending, -(-num_bytes // BYTES_STEP) * BYTES_STEP)

    def _order(self, pending: Pending) -> Order:
        sources = sources_of(pending.part.spans, self._job.shards_by_name)
        return Order(pending.part, sources, pending.saved, pending.earlier)


@ray.remote(num_cpus=TASK_CPUS, max_retries=0)
def _assembled(assemble: Assemble, order: Order) -> tuple[PartRecord, dict[str, float]]:
    watch = Stopwatch()
    with watch.running():
        record = assemble(order)
    return record, {STAGES["assemble"]: watch.seconds}
