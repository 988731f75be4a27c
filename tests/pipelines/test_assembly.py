"""What an assembly survives: a task that is lost is tried again, and then its part fails alone."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions

from batchloom import pipelines
from batchloom.pipelines.config import EngineConfig, JobConfig, LimitsConfig, ReplicasConfig
from batchloom.pipelines.errors import JobError
from batchloom.pipelines.ledger.resume import Pending
from batchloom.pipelines.metrics import UnitFailed, Waiting
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.planning.units import Part, Size, parts_of
from batchloom.pipelines.replicas.placement import Cluster
from batchloom.pipelines.running import assembly, stream
from batchloom.pipelines.running.assembly import (
    BYTES_STEP,
    LONGEST_TASK,
    LOOK_SECONDS,
    MAX_BYTES,
    MAX_TASKS,
    ROOM_SECONDS,
    TASK_BYTES,
    Assembly,
)
from batchloom.pipelines.stages.assemble import Assemble, Order
from batchloom.pipelines.watching.pace import Pace
from batchloom.pipelines.watching.ray_servers import RayServers, Server

FINGERPRINT = "0123456789abcdef" * 4
NODE_BYTES = 100 * BYTES_STEP
LOSSES = [
    exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on the node ..."),
    exceptions.NodeDiedError("The node is gone."),
    exceptions.WorkerCrashedError(),
    exceptions.LocalRayletDiedError(),
    exceptions.ObjectLostError("ff" * 28, None, ""),
    exceptions.OwnerDiedError("ff" * 28, None, ""),
    exceptions.RaySystemError("Broken pipe"),
    exceptions.RayTaskError("_assembled", "Traceback ...", MemoryError("malloc of size 64 failed")),
]


@dataclass
class Tasks:
    """Ray as the assembly sees it. `fate` says what becomes of a part's task: an exception, or None."""

    fate: Callable[[str], Exception | None] = lambda _: None
    now: float = 0.0
    started: list[tuple[float, str]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    at_once: list[int] = field(default_factory=list)
    num_sleeps: int = 0
    nodes: tuple[int, ...] = (NODE_BYTES,)
    """The memory of each."""
    head: int | None = None
    """The memory of a node without CPUs, where there is one."""
    num_stuck: int = 0
    """Tasks, the first ones that start, that never end."""
    cancelled: list[str] = field(default_factory=list)

    def look(self) -> Cluster:
        head = [] if self.head is None else [{"memory": self.head}]
        return Cluster([*head, *({"memory": one, "CPU": 2} for one in self.nodes)])

    def options(self, memory: int) -> "Tasks":
        self.memory.append(memory)
        return self

    def remote(self, _: Assemble, order: Order) -> str:
        self.started.append((self.now, order.part.id))
        self.num_stuck -= 1
        return f"stuck {self.num_stuck} {order.part.id}" if self.num_stuck >= 0 else order.part.id

    def wait(self, tasks: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        assert (num_returns, timeout) == (len(tasks), 1.0)
        self.at_once.append(len(tasks))
        stuck = [task for task in tasks if task.startswith("stuck ") or not self.nodes]
        self.now += timeout if stuck == tasks else 0.0
        return [task for task in tasks if task not in stuck], stuck

    def cancel(self, task: str, force: bool) -> None:
        assert force
        self.cancelled.append(task)

    def get(self, task: str) -> tuple[str, dict[str, float]]:
        """Return what the task returns: its part, and no measures."""
        if (error := self.fate(task)) is not None:
            raise error
        return task, {}

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.num_sleeps += 1
        self.now += seconds


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    tasks = Tasks()
    monkeypatch.setattr(assembly, "_assembled", tasks)
    monkeypatch.setattr(assembly.ray, "wait", tasks.wait)
    monkeypatch.setattr(assembly.ray, "get", tasks.get)
    monkeypatch.setattr(assembly.ray, "cancel", tasks.cancel)
    monkeypatch.setattr(assembly, "time", SimpleNamespace(monotonic=lambda: tasks.now, sleep=tasks.sleep))
    monkeypatch.setattr(assembly.cluster, "look", tasks.look)
    return tasks


def assembly_of(
    num_parts: int,
    part_bytes: int = 1,
    attempts: int = 5,
    stall_minutes: float | None = None,
    wait_minutes: float = 30.0,
) -> tuple[Assembly, list[Part]]:
    """The assembly of parts of ten rows, all of whose answers are there."""
    shard = Shard(Source("a.parquet", "/in/a.parquet", 1, "v"), (10,) * num_parts, (), (part_bytes,) * num_parts)
    parts = list(parts_of([shard], Size(10, 1 << 60)))
    config = SimpleNamespace(
        limits=LimitsConfig(max_unit_attempts=attempts, stall_minutes=stall_minutes),
        engine=EngineConfig(replicas=ReplicasConfig(wait_minutes=wait_minutes)),
    )
    job: Any = SimpleNamespace(fingerprint=FINGERPRINT, shards_by_name={"a.parquet": shard}, config=config)
    assemble: Any = SimpleNamespace(name=lambda part: part.name(FINGERPRINT))
    return Assembly(job, assemble, [Pending(part, ()) for part in parts]), parts


def all_of(one: Assembly) -> list[Any]:
    return [made for _ in iter(lambda: one.is_busy, False) for made, _ in one.finished(1.0)]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda error: type(error).__name__)
def test_a_task_that_is_lost_is_tried_again(tasks: Tasks, loss: Exception) -> None:
    """All but a crashed worker ended the whole job; a lack of memory was tried again by Ray for ever."""
    one, parts = assembly_of(3)
    left = {parts[1].id: [loss, loss]}
    tasks.fate = lambda part: left[part].pop() if left.get(part) else None
    assert sorted(all_of(one)) == sorted(part.id for part in parts)
    assert [part for _, part in tasks.started].count(parts[1].id) == 3
    assert len(tasks.started) == 5


@pytest.mark.parametrize("loss", LOSSES, ids=lambda error: type(error).__name__)
def test_a_part_whose_task_is_always_lost_fails_alone(tasks: Tasks, loss: Exception) -> None:
    one, parts = assembly_of(3, attempts=4)
    tasks.fate = lambda part: loss if part == parts[1].id else None
    failed, *others = sorted(all_of(one), key=lambda made: not isinstance(made, UnitFailed))
    assert sorted(others) == sorted([parts[0].id, parts[2].id])
    assert (failed.shard, failed.start, failed.stop) == ("a.parquet", 10, 20)
    assert failed.reason.startswith(f"{parts[1].name(FINGERPRINT)} could not be assembled: the task was lost 4 times")
    told = type(getattr(loss, "cause", loss)).__name__
    assert f"(limits.max_unit_attempts). The last loss: {told}: " in failed.reason
    assert "\n" not in failed.reason
    assert [part for _, part in tasks.started].count(parts[1].id) == 4


def test_losses_are_waited_for_longer_and_longer_without_a_busy_loop(tasks: Tasks) -> None:
    one, _ = assembly_of(1, attempts=8)
    tasks.fate = lambda _: LOSSES[0]
    all_of(one)
    times = [when for when, _ in tasks.started]
    assert [after - before for before, after in pairwise(times)] == [1, 2, 4, 8, 16, 30, 30]
    assert tasks.num_sleeps == tasks.now  # a second each


def test_what_the_task_itself_says_is_final(tasks: Tasks) -> None:
    one, _ = assembly_of(1)
    tasks.fate = lambda _: exceptions.RayTaskError("_assembled", "Traceback ...", JobError("answers are gone"))
    (failed,) = all_of(one)
    assert failed.reason == "answers are gone"
    assert len(tasks.started) == 1


def test_as_many_tasks_run_at_once_as_have_room(tasks: Tasks) -> None:
    """Sixteen parts of 256 MiB were assembled at the same time, whatever memory there was."""
    all_of(assembly_of(40)[0])
    assert tasks.at_once == [MAX_TASKS, MAX_TASKS, 8]
    assert set(tasks.memory) == {-(-TASK_BYTES // BYTES_STEP) * BYTES_STEP}
    tasks.at_once, tasks.memory = [], []
    all_of(assembly_of(10, part_bytes=1 << 28)[0])
    (memory,) = set(tasks.memory)
    assert TASK_BYTES + (1 << 28) <= memory < TASK_BYTES + (1 << 28) + BYTES_STEP
    assert max(tasks.at_once) == MAX_BYTES // memory
    tasks.at_once, tasks.memory, tasks.nodes = [], [], (1 << 50, NODE_BYTES)
    all_of(assembly_of(2, part_bytes=1 << 40)[0])
    assert tasks.at_once == [1, 1]
    assert set(tasks.memory) == {NODE_BYTES}  # of the smallest node: Ray would wait for a larger one for ever


def test_nodes_that_come_and_go_decide_how_many_tasks_run_and_what_they_ask_for(tasks: Tasks) -> None:
    """16 ran at once in a cluster of 100 nodes, and where the large nodes had left, tasks asked for what none had."""
    one, _ = assembly_of(100)
    assert len(list(one.finished(1.0))) == MAX_TASKS
    tasks.nodes = (NODE_BYTES,) * 4
    tasks.now += LOOK_SECONDS
    assert len(list(one.finished(1.0))) == 4 * MAX_TASKS
    tasks.nodes, tasks.memory = (BYTES_STEP,), []
    tasks.now += LOOK_SECONDS
    assert len(list(one.finished(1.0))) == MAX_TASKS
    assert set(tasks.memory) == {BYTES_STEP}


def test_a_task_that_does_not_end_is_told_of_and_taken_for_lost(tasks: Tasks, monkeypatch) -> None:
    """Its process may be stopped: nobody else would ever say so."""
    there = RayServers([], lambda _: True, lambda: tasks.now)
    monkeypatch.setattr(stream.RayServers, "of_this_driver", lambda: there)
    one, parts = assembly_of(2)
    tasks.num_stuck = 1
    told: list[Any] = []
    made = list(stream._assembled(one, Pace(15.0, lambda: tasks.now), told.append))
    assert sorted(record for record, _ in made) == sorted(part.id for part in parts)
    assert tasks.cancelled == [f"stuck 0 {parts[0].id}"]
    assert LONGEST_TASK < tasks.now < LONGEST_TASK + 10
    assert [event.assembling for event in told] == [(parts[0].name(FINGERPRINT),)] * len(told)
    assert 15 <= told[0].seconds < 20


def test_nodes_that_are_gone_are_told_of_at_once_and_waited_for(tasks: Tasks, monkeypatch) -> None:
    """Parts that waited for a node were taken for stuck after 15 minutes, five times, whatever wait_minutes said, and
    no word told of it."""
    there = RayServers([], lambda _: True, lambda: tasks.now)
    monkeypatch.setattr(stream.RayServers, "of_this_driver", lambda: there)
    one, parts = assembly_of(40, attempts=1)
    tasks.head, tasks.nodes = NODE_BYTES, (NODE_BYTES,)
    one._look()
    tasks.nodes = ()
    told: list[tuple[float, Waiting]] = []

    def tell(event: Any) -> None:
        told.append((tasks.now, event))
        if tasks.now > 20 * 60:
            tasks.nodes = (NODE_BYTES,)

    tasks.now += ROOM_SECONDS
    made = list(stream._assembled(one, Pace(15.0, lambda: tasks.now), tell))
    assert sorted(record for record, _ in made) == sorted(part.id for part in parts)
    assert tasks.cancelled == []
    when, waiting = told[0]
    assert when <= 2 * ROOM_SECONDS
    assert waiting.lacking == ("assembling parts needs logical CPUs, the cluster has none; 1 of 2 nodes are gone",)
    assert 29 * 60 < waiting.seconds_left <= 30 * 60


def test_nodes_that_are_gone_too_long_end_the_job(tasks: Tasks, monkeypatch) -> None:
    there = RayServers([], lambda _: True, lambda: tasks.now)
    monkeypatch.setattr(stream.RayServers, "of_this_driver", lambda: there)
    tasks.head, tasks.nodes = NODE_BYTES, ()
    one, _ = assembly_of(1, wait_minutes=2)
    with pytest.raises(JobError) as caught:
        list(stream._assembled(one, Pace(15.0, lambda: tasks.now), lambda _: None))
    assert str(caught.value) == (
        "No node that can assemble parts came within 2 minutes (engine.replicas.wait_minutes): assembling parts needs "
        "logical CPUs, the cluster has none. All rows are computed. Give Ray more CPUs, or wait longer.\nFinished "
        "parts are kept; the same command goes on from there."
    )
    assert 120 <= tasks.now < 120 + ROOM_SECONDS + 2


def test_a_task_that_never_ends_fails_its_part(tasks: Tasks) -> None:
    one, _ = assembly_of(1, attempts=2, stall_minutes=1)
    tasks.num_stuck = 10
    (failure,) = all_of(one)
    assert "lost 2 times in a row" in failure.reason
    assert "TimeoutError: it had not ended after 60 s. Look for" in failure.reason


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Let the worker that assembles the part of shard a be killed so many times, before or after it wrote that."""
    plain, deaths = stream.assembler, tmp_path / "deaths"
    deaths.mkdir()

    def kill(num_deaths: int, is_written: bool) -> None:
        def assembler(job: JobPlan) -> Assemble:
            class Killed(Assemble):
                def put(self, part: Part, *others: Any) -> Any:
                    record = super().put(part, *others) if is_written else None
                    num_before = len(list(deaths.iterdir()))
                    if part.spans[0].shard == "a.parquet" and num_before < num_deaths:
                        (deaths / str(num_before)).touch()
                        os.kill(os.getpid(), signal.SIGKILL)
                    return record or super().put(part, *others)

            return Killed(**vars(plain(job)))

        monkeypatch.setattr(stream, "assembler", assembler)

    return kill


@pytest.fixture
def job(make_job: Callable[..., JobConfig]) -> JobConfig:
    """A job of many units and of two parts: shard a alone, b and c together."""
    return replace(make_job(rows_per_unit=20, rows_per_part=40), limits=LimitsConfig(max_unit_attempts=2))


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_that_is_killed_while_it_assembles_costs_nothing(job, kill, tmp_path, output_table) -> None:
    kill(1, is_written=True)
    manifest = pipelines.run(job)
    assert len(list((tmp_path / "deaths").iterdir())) == 1
    assert manifest.totals["ok"] == 75
    assert output_table(job.output.path)["id"].to_pylist() == list(range(75))
    assert pipelines.verify(job.output.path).ok


@pytest.mark.usefixtures("ray_cluster")
def test_a_part_whose_workers_are_killed_is_named_and_all_others_are_written(job, kill, output_table) -> None:
    kill(2, is_written=False)
    with pytest.raises(JobError) as caught:
        pipelines.run(job)
    message = str(caught.value)
    assert "1 part of a.parquet (rows 0-40): part-a-000000000-000000040-" in message
    assert "lost 2 times in a row (limits.max_unit_attempts). The last loss: WorkerCrashedError: The worker" in message
    assert "All others are done." in message
    assert [path.name[:7] for path in Path(job.output.path).glob("*.parquet")] == ["part-b-"]
    assert not (Path(job.output.path) / "_SUCCESS").exists()
    assert pipelines.run(job).timing["units_computed"] == 0
    assert output_table(job.output.path)["id"].to_pylist() == list(range(75))
    assert pipelines.verify(job.output.path).ok


def test_a_ray_that_is_gone_ends_the_job_while_parts_are_assembled(tasks: Tasks, monkeypatch) -> None:
    """Nobody looked whether Ray answers once all units were computed."""
    gone = RayServers([Server("Ray's raylet", ("localhost", 1), 3.0)], lambda _: False, lambda: tasks.now)
    monkeypatch.setattr(stream.RayServers, "of_this_driver", lambda: gone)
    tasks.fate = lambda _: exceptions.LocalRayletDiedError()
    one, _ = assembly_of(1)
    with pytest.raises(
        JobError, match=r"Ray's raylet does not answer for 3 s: it was killed or cannot be reached\.\nFin"
    ):
        list(stream._assembled(one, Pace(15.0, lambda: tasks.now), lambda _: None))
