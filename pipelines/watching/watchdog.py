"""The watchdog looks after a job's replicas while the driver waits: what they do, and which are to be started again.

A replica is ended, so that Ray starts it again and gives it its units, where it makes no progress although it has
work: no step of its engine, no batch, no unit begun or ended. A slow replica makes steps, and is left alone. One whose
process says nothing at all, although a thread of it reports every two seconds, is stopped or cut off.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchloom.pipelines.config import LimitsConfig
from batchloom.pipelines.metrics import ReplicaEnded, Replicas, ReplicaSight, Waiting
from batchloom.pipelines.replicas.placement import Node, Placement, one_of
from batchloom.pipelines.telemetry.usage import ReplicaUsage, Usage
from batchloom.pipelines.watching.environment import unready
from batchloom.pipelines.watching.memory_kills import MemoryKills
from batchloom.pipelines.watching.ray_servers import RayServers, Silence, loss_of
from batchloom.pipelines.watching.room_wait import RoomWait
from batchloom.pipelines.watching.roster import REPORT_SECONDS, Process, Roster, Sight, started_at

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
ANSWER_SECONDS = 10.0  # to wait for the roster
KILL_SECONDS = 30.0  # to wait for a task that kills, and its worker's start
STALL_SECONDS = 900.0  # at least, without a step: the longest steps that were seen took minutes
STALL_PAUSES = 20  # times the longest pause between two steps of the same replica
SILENT_SECONDS = 180.0  # without a report of a thread that does nothing else
AGAIN_SECONDS = 60.0  # a replica that was to end and did not is ended again
REPEAT_SECONDS = 60.0  # trouble that stays is told so often
HEARD_SECONDS = 5 * REPORT_SECONDS  # a replica that reported since then is alive
MOST_TOLD = 16  # replicas whose times are told one by one


class Watchdog:
    """A context: threads that look every LOOK_SECONDS. They kill processes; whoever waits asks what they saw."""

    def __init__(self, roster: Roster, placement: Placement, limits: LimitsConfig, wait_minutes: float) -> None:
        """`wait_minutes`: how long a job may wait for a node that holds a replica."""
        self._roster, self._placement, self._limits = roster, placement, limits
        self._servers = RayServers.of_this_driver()
        self._room_wait, self._wait_minutes = RoomWait(wait_minutes), wait_minutes
        self._memory_kills = MemoryKills()
        self._sights: list[Sight] = []
        self._seen: dict[str, str] = {}
        """Addresses of nodes that were there at some time of the job."""
        self._gone: set[str] = set()
        self._nodes = self._look_at_nodes()
        self._free: Node | None = None
        """What of the cluster nobody holds; None where replicas are ready, and it does not matter."""
        self._looked_at = time.monotonic()
        self._silences: list[Silence] = []
        self._loss: str | None = None
        self._told = ("", float("-inf"))
        """The last trouble of looking, and when it was told."""
        self._ended_at: dict[Process, float] = {}
        self._ended: list[ReplicaEnded] = []
        self._changing = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        # By itself: who waits for the roster of a Ray that is gone would ask too late, as Ray soon ends this process.
        self._asking = threading.Thread(target=self._ask_servers, name="watchdog asks servers", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        self._asking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(LOOK_SECONDS)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    # ------------------------------------------------------------------------------------- what the driver asks for

    def loss(self) -> str | None:
        """Return why the job cannot go on, where Ray is gone, or cannot start what the job asks of it."""
        with self._changing:
            return self._loss or loss_of(self._silences)

    def begins_to_wait(self) -> bool:
        """Return whether no node holds a replica, or memory lacks, the first time that this is asked since."""
        return self._room_wait.is_news() or self._memory_kills.is_news()

    def went_on(self) -> None:
        """Called when a unit is done."""
        self._memory_kills.went_on()

    def memory_loss(self) -> str | None:
        """Return why the job cannot go on, where Ray ends whatever it starts for lack of memory."""
        return self._memory_kills.loss()

    def vain_wait(self) -> str | None:
        """Return why the job cannot go on, where no node that holds a replica has come for too long."""
        if not self._room_wait.is_over:
            return None
        with self._changing:
            nodes = self._nodes
        ways_out = one_of([*self._placement.ways_out(_resources(nodes)), "wait longer"])
        return (
            f"No node that holds a replica came within {self._wait_minutes:g} minutes (engine.replicas.wait_minutes): "
            f"{'; '.join(self._lacking(nodes))}. {ways_out}"
        )

    def ended(self) -> list[ReplicaEnded]:
        """Return the replicas that were ended since this was last asked."""
        with self._changing:
            ended, self._ended = self._ended, []
        return ended

    def replicas(self) -> Replicas:
        """Return how many replicas there are, as of the last look."""
        with self._changing:
            sights = self._sights
            nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in self._nodes}
        heard = [one for one in sights if one.process.node in nodes and one.heard < HEARD_SECONDS]
        num_ready = sum(one.is_ready for one in heard)
        most_waiting = sorted(sights, key=lambda one: one.usage.waiting, reverse=True)[:MOST_TOLD]
        return Replicas(
            num_ready,
            max(len(heard), self._placement.min_replicas) - num_ready,
            sum(len(one.units) for one in heard),
            sum((one.usage for one in sights), Usage()),
            tuple(ReplicaUsage(nodes.get(one.process.node, ""), one.process.id, one.usage) for one in most_waiting),
        )

    def last_look(self) -> Replicas:
        """Look once more, when all units are computed, and return how many replicas there are and what they did."""
        self._roster.over()
        try:
            sights = self._roster.look(ANSWER_SECONDS)
        except (TimeoutError, ray.exceptions.RayError) as error:
            log.warning("what replicas did last could not be asked for: %s", error)
        else:
            with self._changing:
                self._sights = sights
        return self.replicas()

    def waiting(self, quiet_seconds: float) -> Waiting:
        """Return what is known of a silence that lasts so long."""
        with self._changing:
            sights, nodes, silences, free = self._sights, self._nodes, self._silences, self._free
            age = time.monotonic() - self._looked_at
        alive = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}
        replicas = tuple(
            ReplicaSight(
                node=alive.get(sight.process.node, ""),
                process_id=sight.process.id,
                is_ready=sight.is_ready,
                is_alive=sight.process.node in alive and sight.heard + age < HEARD_SECONDS,
                heard_seconds=sight.heard + age,
                progress_seconds=sight.progressed + age,
                units=tuple(name for name, _ in sight.units),
                unit_seconds=max((seconds for _, seconds in sight.units), default=0.0) + age,
            )
            for sight in sights
        )
        taken = [] if free is None else self._placement.taken(_resources(nodes), free)
        trouble = self._memory_kills.trouble()
        lacking = [*(self._lacking(nodes) or taken), *map(str, silences), *filter(None, [trouble])]
        num_replicas, seconds_left = self._placement.min_replicas, self._room_wait.seconds_left
        return Waiting(quiet_seconds, replicas, num_replicas, tuple(lacking), seconds_left)

    # ---------------------------------------------------------------------------------------------- on its threads

    def _ask_servers(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            silences = self._servers.silences()
            with self._changing:
                self._silences = silences

    def _run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                self._look_at_memory()
                self._look()
            except ray.exceptions.RuntimeEnvSetupError as error:  # of the roster: Ray does not try again
                with self._changing:
                    self._loss = unready(str(error))
                return
            except Exception as error:  # a thread that ends of one look would leave the job without a watchdog
                self._tell(f"the watchdog could not look after replicas: {type(error).__name__}: {error}")

    def _tell(self, trouble: str) -> None:
        told, told_at = self._told
        is_news = trouble != told or time.monotonic() - told_at > REPEAT_SECONDS
        if is_news and not self._over.is_set():
            self._told = (trouble, time.monotonic())
            log.warning("%s", trouble)

    def _look_at_memory(self) -> None:
        """Before the roster is asked: it may be ended for lack of memory, too."""
        with self._changing:
            sights, age = self._sights, time.monotonic() - self._looked_at
            is_any_silent = bool(self._silences)
        if not is_any_silent:
            heard = (sight for sight in sights if sight.heard + age < HEARD_SECONDS)
            self._memory_kills.look([sight.process for sight in heard if sight.units or not sight.is_ready])

    def _look(self) -> None:
        with self._changing:
            is_any_silent = bool(self._silences)
        if is_any_silent:
            return  # what asks Ray now would wait for it
        sights, nodes = self._roster.look(ANSWER_SECONDS), self._look_at_nodes()
        is_any_ready = any(sight.is_ready and sight.heard < HEARD_SECONDS for sight in sights)
        free = None if is_any_ready else ray.available_resources()
        with self._changing:
            self._sights, self._nodes, self._free, self._looked_at = sights, nodes, free, time.monotonic()
        alive = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}
        for sight in sights:
            due = time.monotonic() - self._ended_at.get(sight.process, float("-inf")) > AGAIN_SECONDS
            if due and sight.process.node in alive:
                if is_silent(sight, self._limits):
                    self._roster.blameless(sight.replica)
                    self._end(sight, alive[sight.process.node], f"its process did not report for {sight.heard:.0f} s")
                elif is_stalled(sight, self._limits):
                    reason = f"it made no step for {sight.progressed:.0f} s although it has work"
                    self._end(sight, alive[sight.process.node], reason)

    def _look_at_nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that are there."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        self._seen |= {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}
        gone = self._seen.keys() - {node["NodeID"] for node in nodes}
        for node_id in gone - self._gone:
            log.warning("Node %s has left the cluster: other replicas compute what its own had.", self._seen[node_id])
        self._gone = gone
        self._room_wait.look(self._placement.room(_resources(nodes)) > 0)
        return nodes

    def _lacking(self, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
        return self._placement.lacking(_resources(nodes), num_gone=len(self._seen) - len(nodes))

    def _end(self, sight: Sight, host: str, reason: str) -> None:
        """Kill a replica's process from a task on its node: it may not run itself. It may also be gone already."""
        self._ended_at[sight.process] = time.monotonic()
        there = NodeAffinitySchedulingStrategy(sight.process.node, soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
        if ray.get(ray.remote(**options)(kill).remote(sight.process), timeout=KILL_SECONDS):
            with self._changing:
                self._ended.append(ReplicaEnded(host, sight.process.id, reason, tuple(name for name, _ in sight.units)))


def _resources(nodes: Sequence[Mapping[str, Any]]) -> list[Node]:
    return [node["Resources"] for node in nodes]


def is_silent(sight: Sight, limits: LimitsConfig) -> bool:
    """Return whether nothing was heard of a process for so long that it must be stopped or cut off."""
    given = float("inf") if limits.stall_minutes is None else 60 * limits.stall_minutes
    return sight.heard > min(SILENT_SECONDS, given)


def is_stalled(sight: Sight, limits: LimitsConfig) -> bool:
    """Return whether a replica has work and made no step for so long that it will make none."""
    if limits.stall_minutes is None:
        patience = max(STALL_SECONDS, STALL_PAUSES * sight.longest_pause)
    else:
        patience = 60 * limits.stall_minutes
    return sight.is_ready and bool(sight.units) and sight.progressed > patience


def kill(process: Process) -> bool:
    """End a process of this node and return true; false where it is gone, and its number perhaps another's."""
    if started_at(process.id) != process.started:
        return False
    os.kill(process.id, signal.SIGKILL)
    return True
