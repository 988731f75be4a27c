"""The assembly of parts as Ray tasks, beside the stream: as soon as all answers to a part are there, it is written."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import ray

from batchloom.pipelines.counts import PartRecord, UnitRecord
from batchloom.pipelines.errors import JobError
from batchloom.pipelines.ledger.answers import Saved
from batchloom.pipelines.ledger.resume import Pending
from batchloom.pipelines.metrics import UnitFailed
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.stages.assemble import Assemble, Order

MAX_TASKS = 16
TASK_CPUS = 0.001  # it waits for stores most of the time, and must find room beside replicas


class Assembly:
    """Counts which parts are complete, and has them assembled."""

    def __init__(self, job: JobPlan, assemble: Assemble, pending: Iterable[Pending]) -> None:
        self._job, self._fingerprint = job, job.fingerprint
        self._assemble = ray.put(assemble)
        self._left: dict[str, int] = {}
        self._pending: dict[str, Pending] = {}
        self._saved: dict[str, list[Saved]] = {}
        self._ready: deque[Pending] = deque()
        self._running: dict[Any, Pending] = {}
        for one in pending:
            if one.missing:
                self._left[one.part.id] = sum(stop - start for start, stop in one.missing)
                self._pending[one.part.id] = one
            else:
                self._ready.append(one)

    @property
    def is_busy(self) -> bool:
        return bool(self._ready or self._running)

    def answered(self, unit: UnitRecord) -> None:
        """Take note of a unit whose answers are saved."""
        self._left[unit.part] -= sum(stop - start for start, stop in unit.ranges)
        saved = self._saved.setdefault(unit.part, [])
        saved.append(Saved(unit.part, self._fingerprint, unit.ranges))
        if not self._left[unit.part]:
            pending = self._pending.pop(unit.part)
            self._ready.append(
                Pending(pending.part, (), (*pending.saved, *self._saved.pop(unit.part)), pending.earlier)
            )

    def finished(self, seconds: float) -> Iterator[PartRecord | UnitFailed]:
        """Start what can be started, and yield what is done within so many seconds."""
        while self._ready and len(self._running) < MAX_TASKS:
            pending = self._ready.popleft()
            self._running[_assembled.remote(self._assemble, self._order(pending))] = pending
        if not self._running:
            return
        done, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=seconds)
        for task in done:
            pending = self._running.pop(task)
            try:
                yield ray.get(task)
            except (ray.exceptions.RayTaskError, ray.exceptions.WorkerCrashedError) as error:
                cause = getattr(error, "cause", None)
                spans = pending.part.spans
                reason = str(cause) if isinstance(cause, JobError) else f"{pending.part.stem}: {error}"
                yield UnitFailed(spans[0].shard, spans[0].start, spans[-1].stop, reason)

    def _order(self, pending: Pending) -> Order:
        sources = {span.shard: self._job.shards_by_name[span.shard].source for span in pending.part.spans}
        return Order(pending.part, sources, pending.saved, pending.earlier)


@ray.remote(num_cpus=TASK_CPUS)
def _assembled(assemble: Assemble, order: Order) -> PartRecord:
    return assemble(order)
