"""Processes of this job that Ray ended because a node's memory was fuller than Ray allows.

Ray begins their work again without an end, and says so in pages that pass by. Where memory stays that full a job would
never end, so the watchdog counts such ends since the job last went on.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import ray
from ray._private import state
from ray.core.generated import common_pb2, gcs_pb2

from batchloom.pipelines.watching.roster import Process

log = logging.getLogger(__name__)

FEWEST = 6  # in a row that end a job: Ray waits 1, 2, 4, 8, 16 s before it starts a task again
SECONDS = 60.0  # at least, between the first and the last of them: other programs may need memory for a moment
LIFE_SECONDS = 60.0  # a replica that lives so long and is at work may still answer
TOLD_SECONDS = 120.0  # an older end is not told any more

ADVICE = (
    "End what else runs there, or take nodes with more memory. Where it is the job's own, lower engine.replicas.max, "
    "engine.units_in_flight, engine.max_batch_tokens or output.rows_per_part. Where so much memory may be used, start "
    "Ray with a higher RAY_memory_usage_threshold (a share: 0.95 unless set)."
)
_USE = re.compile(r"\(IP: ([^,]+), ID: \w+\) was ([\d.]+)GB used / ([\d.]+)GB limit")
_THRESHOLD = re.compile(r"exceeded threshold of \S+ \(([\d.]+)% of")


@dataclass(frozen=True)
class MemoryKill:
    """A process that was ended."""

    worker: str
    """Ray's name of it, in hexadecimal digits."""
    found: str
    """The node, its memory, and what Ray allows, in words."""


def told_by_ray() -> list[MemoryKill]:
    """Return all of this job that Ray remembers: it forgets old ones. Asks the cluster's control store, which may not
    answer now, and by names that another version of Ray may not have: then none are told."""
    try:
        table = state.state._connect_and_get_accessor().get_worker_table()
        job = ray.get_runtime_context().get_job_id()
    except (AttributeError, ray.exceptions.RayError) as error:
        log.debug("processes that were ended for lack of memory could not be asked for: %s", error)
        return []
    workers = map(gcs_pb2.WorkerTableData.FromString, table)  # type: ignore[attr-defined]
    memory: int = common_pb2.WorkerExitType.NODE_OUT_OF_MEMORY  # type: ignore[attr-defined]
    killed = [one for one in workers if one.exit_type == memory]
    kills = [(one.worker_address.worker_id.hex(), one.exit_detail) for one in killed]
    return [MemoryKill(worker, found(words)) for worker, words in kills if is_of(job, worker, words)]


def is_of(job: str, worker: str, words: str) -> bool:
    """Return whether Ray's words about a worker's end are about one of this job, which it may not say."""
    named = re.search(rf"job ID=(\w+)[^\n]*worker ID={worker}", words)
    return named is None or named[1] == job


def found(words: str) -> str:
    """Return a node's memory in words, from Ray's page about the end of a worker."""
    use, threshold = _USE.search(words), _THRESHOLD.search(words)
    if use is None or threshold is None:
        return words.partition("\n")[0].rstrip(" .")
    return f"{use[2]} of {use[3]} GB are used on node {use[1]}, and Ray allows {float(threshold[1]):g} %"


def said_of(error: ray.exceptions.OutOfMemoryError) -> str:
    """Return why a job failed of one such end, and what to change."""
    return f"Ray ended a process of this job for lack of memory: {found(str(error))}. {ADVICE}"


@dataclass
class MemoryKills:
    """Call `look` every few seconds, and `went_on` when something was done. Threads may share it."""

    ask: Callable[[], Collection[MemoryKill]] = told_by_ray
    clock: Callable[[], float] = time.monotonic
    _known: set[str] = field(default_factory=set)
    _in_a_row: list[tuple[float, MemoryKill]] = field(default_factory=list)
    _seen: dict[Process, float] = field(default_factory=dict)
    """Replicas that are alive, and since when."""
    _is_told: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._known = {kill.worker for kill in self.ask()}  # of jobs before, in this process

    def look(self, at_work: Collection[Process]) -> None:
        """`at_work`: replicas that load, or compute something, and were heard of just now."""
        kills, now = self.ask(), self.clock()
        with self._lock:
            self._in_a_row += [(now, kill) for kill in kills if kill.worker not in self._known]
            self._known |= {kill.worker for kill in kills}
            self._seen = {process: self._seen.get(process, now) for process in at_work}
            if any(now - since >= LIFE_SECONDS for since in self._seen.values()):
                self._in_a_row = self._in_a_row[-1:]

    def went_on(self) -> None:
        with self._lock:
            self._in_a_row = self._in_a_row[-1:]  # told for a while, and not counted

    def is_news(self) -> bool:
        """Return whether there was one of which this has not told yet."""
        with self._lock:
            is_news = bool(self._in_a_row) and not self._is_told
            self._is_told = self._is_told or is_news
        return is_news

    def trouble(self) -> str | None:
        """Return in words what happens now, and what to change; None where nothing does."""
        with self._lock:
            if not self._in_a_row or self.clock() - self._in_a_row[-1][0] > TOLD_SECONDS:
                return None
            (_, last), num_kills = self._in_a_row[-1], len(self._in_a_row)
        return f"Ray ends processes of this job for lack of memory, {num_kills} since a unit was done: {last.found}"

    def loss(self) -> str | None:
        """Return why the job cannot go on: processes are ended again and again, and nothing is done between."""
        with self._lock:
            if len(self._in_a_row) < FEWEST or self._in_a_row[-1][0] - self._in_a_row[0][0] < SECONDS:
                return None
            (first, _), (at, last) = self._in_a_row[0], self._in_a_row[-1]
            num_kills, seconds = len(self._in_a_row), at - first
        return (
            f"Ray ended {num_kills} processes of this job for lack of memory within {seconds:.0f} s, and no unit was "
            f"done meanwhile: {last.found}. {ADVICE}"
        )
