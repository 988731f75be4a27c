"""The roster of a job's replicas: what each computes, when it last was heard of, how often it died. It knows no model.

It lives in an actor of its own beside the driver: whoever dies of a start or of a unit cannot count it. A replica sends
it a message a unit and one every REPORT_SECONDS; the driver's watchdog reads it.
"""

import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchloom.pipelines.telemetry.usage import Usage
from batchloom.pipelines.watching.attempts import Attempt, Attempts
from batchloom.pipelines.watching.starts import Starts

if TYPE_CHECKING:  # the actor's process would import Arrow for it, while the replica starts
    from batchloom.pipelines.planning.units import Unit

REPORT_SECONDS = 2.0
MAX_FAILED_UNITS = 3  # one after the other, with no answered unit between them: nothing will be better for the next


@dataclass(frozen=True)
class Process:
    """Where a replica is. The time of its start tells it from a later process of the same number."""

    node: str
    id: int
    started: str

    @staticmethod
    def this() -> "Process":
        return Process(ray.get_runtime_context().get_node_id(), os.getpid(), started_at(os.getpid()))


def started_at(process_id: int) -> str:
    """Return when a process was started, in the kernel's clock ticks; empty where it is gone or there is no /proc."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


@dataclass
class Computing:
    """A unit that a replica computes."""

    name: str
    since: float
    is_alone: bool = False
    """It is computed alone, or waits for that."""
    span: int | None = None
    """Where the rows start that are computed alone now."""


@dataclass
class Entry:
    """A replica. Times are the roster's own."""

    process: Process
    heard_at: float
    progressed_at: float
    is_ready: bool = False
    num_steps: int = 0
    longest_pause: float = 0.0
    """Between two steps, in seconds, while it had work."""
    usage: Usage = field(default_factory=Usage)
    """Of this process."""
    usage_before: Usage = field(default_factory=Usage)
    """Of processes that this replica had before."""
    idle_since: float = 0.0
    """Since when it has no unit."""
    is_blameless: bool = False
    """It is ended because nothing was heard of it: no unit is to blame."""
    units: dict[str, Computing] = field(default_factory=dict)


@dataclass(frozen=True)
class Sight:
    """What the watchdog sees of a replica; seconds ago."""

    replica: str
    process: Process
    is_ready: bool
    heard: float
    progressed: float
    longest_pause: float
    units: tuple[tuple[str, float], ...]
    """Name of each unit, and the seconds since it was begun."""
    usage: Usage = field(default_factory=Usage)
    """Of all processes that it had."""


class Roster:
    """The driver makes it; each replica calls it from its own actor."""

    def __init__(self, max_attempts: int, num_units: int) -> None:
        """`num_units`: that the job computes."""
        # Not soft: an actor that asks for nothing Ray would place anywhere, and it would die with a node that leaves.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        entries = ray.remote(**options)(Entries).options(scheduling_strategy=here)
        self._actor: Any = entries.remote(max_attempts, num_units)

    def end(self) -> None:
        """Called by the driver when the replicas are gone. References to them that libraries keep would let the actor
        live as long as the driver's process."""
        ray.kill(self._actor)

    # ------------------------------------------------------------------------------------------- called by replicas

    def begin(self) -> str | None:
        """Called before loading; the reason not to try once more, where there is one."""
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        refusal: str | None = ray.get(self._actor.begin.remote(this_replica(), Process.this(), alive))
        return refusal

    def lost(self, words: str) -> None:
        """What a replica knows of its end while it loads."""
        ray.get(self._actor.lost.remote(this_replica(), words))

    def ready(self) -> None:
        ray.get(self._actor.ready.remote(this_replica()))

    def report(self, num_steps: int, usage: Usage) -> None:
        """What the replica did so far, every REPORT_SECONDS."""
        self._actor.report.remote(this_replica(), Process.this(), num_steps, usage)

    def take(self, unit: "Unit", num_rows: int) -> Attempt:
        """Called before a unit is computed: how to do it. `num_rows` are those of its requests."""
        attempt: Attempt = ray.get(self._actor.take.remote(this_replica(), unit.id, unit.stem, num_rows))
        return attempt

    def enter(self, unit: "Unit", start: int) -> None:
        """Called before a span of a unit is computed alone."""
        ray.get(self._actor.enter.remote(this_replica(), unit.id, start))

    def leave(self, unit: "Unit", start: int) -> None:
        """Called when the span is answered."""
        self._actor.leave.remote(this_replica(), unit.id, start)

    def done(self, unit: "Unit", usage: Usage) -> None:
        """Called when the unit is answered."""
        self._actor.done.remote(this_replica(), unit.id, usage)

    # --------------------------------------------------------------------------------------- called by the watchdog

    def look(self, seconds: float) -> list[Sight]:
        """Return what is known of all replicas. Raises: TimeoutError."""
        try:
            sights: list[Sight] = ray.get(self._actor.look.remote(), timeout=seconds)
        except ray.exceptions.GetTimeoutError:
            raise TimeoutError(
                f"nothing was heard of them for {seconds:.0f} s, as where a machine is overloaded"
            ) from None
        return sights

    def over(self) -> None:
        """Called when all units are computed: nobody waits for one any more."""
        self._actor.over.remote()

    def blameless(self, replica: str) -> None:
        """Called before a replica is ended that nothing was heard of."""
        self._actor.blameless.remote(replica)


class Entries:
    """The actor. What is lost with it are counts: units are tried as if for the first time."""

    def __init__(self, max_attempts: int, num_units: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_attempts, self._num_units, self._clock = max_attempts, num_units, clock
        self._num_begun = 0
        self._starts = Starts()
        self._entries: dict[str, Entry] = {}
        self._attempts: dict[str, Attempts] = {}
        self._num_failed = 0

    def begin(self, replica: str, process: Process, alive_nodes: Collection[str]) -> str | None:
        before = self._entries.get(replica)
        entry = self._entries[replica] = self._new(process)
        if before is not None and before.process != process:
            self._settle(before, before.is_blameless or before.process.node not in alive_nodes)
            entry.usage_before = before.usage_before + before.usage
        if self._num_failed >= MAX_FAILED_UNITS:
            return (
                f"Replicas die of whatever they compute: {self._num_failed} units in a row could not be answered. "
                "Look for an out-of-memory kill on their nodes, and at Ray's logs of the replicas."
            )
        return self._starts.begin(replica)

    def lost(self, replica: str, words: str) -> None:
        self._starts.lost(replica, words)

    def ready(self, replica: str) -> None:
        self._starts.ready(replica)
        if replica in self._entries:
            entry = self._entries[replica]
            entry.is_ready = True
            entry.progressed_at = entry.idle_since = self._clock()

    def report(self, replica: str, process: Process, num_steps: int, usage: Usage) -> None:
        entry = self._entries.setdefault(replica, self._new(process))
        if entry.process != process:
            return  # sent before its end
        entry.heard_at, entry.usage = self._clock(), usage
        if num_steps != entry.num_steps:
            entry.num_steps, entry.is_ready = num_steps, True
            self._progressed(entry)

    def take(self, replica: str, unit: str, name: str, num_rows: int) -> Attempt:
        known = self._attempts.get(unit)
        attempt = known.next() if known is not None else Attempt()
        if attempt.failure is not None:
            self._num_failed += 1
        elif (entry := self._entries.get(replica)) is not None:
            if not entry.units:
                entry.progressed_at = self._clock()  # it had nothing to do until now
            entry.units[unit] = Computing(name, self._clock(), attempt.spans is not None)
            if known is None:
                self._num_begun += 1
                self._attempts[unit] = Attempts(num_rows, self._max_attempts)
        return attempt

    def enter(self, replica: str, unit: str, start: int) -> None:
        if (entry := self._entries.get(replica)) is not None and unit in entry.units:
            entry.units[unit].span = start
            entry.progressed_at = self._clock()

    def leave(self, replica: str, unit: str, start: int) -> None:
        if (entry := self._entries.get(replica)) is not None and unit in entry.units:
            self._attempts[unit].answered(start)
            entry.units[unit].span = None
            self._progressed(entry)

    def done(self, replica: str, unit: str, usage: Usage) -> None:
        self._num_failed = 0
        self._attempts.pop(unit, None)
        if (entry := self._entries.get(replica)) is not None and entry.units.pop(unit, None) is not None:
            self._progressed(entry)
            entry.idle_since, entry.usage = self._clock(), usage

    def look(self) -> list[Sight]:
        now = self._clock()
        return [
            Sight(
                replica,
                entry.process,
                entry.is_ready,
                now - entry.heard_at,
                now - entry.progressed_at,
                entry.longest_pause,
                tuple((unit.name, now - unit.since) for unit in entry.units.values()),
                entry.usage_before + entry.usage + Usage(waiting=self._waits(entry)),
            )
            for replica, entry in self._entries.items()
        ]

    def over(self) -> None:
        self._num_units = 0

    def blameless(self, replica: str) -> None:
        self._entries[replica].is_blameless = True

    def _new(self, process: Process) -> Entry:
        now = self._clock()
        return Entry(process, now, now, idle_since=now)

    def _waits(self, entry: Entry) -> float:
        """Return the seconds of a wait that has not ended, where there are units that no replica has begun."""
        waits = entry.is_ready and not entry.units and self._num_begun < self._num_units
        return max(0.0, entry.heard_at - entry.idle_since) if waits else 0.0

    def _progressed(self, entry: Entry) -> None:
        now = self._clock()
        if entry.units:
            entry.longest_pause = max(entry.longest_pause, now - entry.progressed_at)
        entry.progressed_at = now

    def _settle(self, dead: Entry, is_blameless: bool) -> None:
        """Count a replica's death for the units that it computed, and not for those that waited to be alone."""
        is_any_alone = any(unit.span is not None for unit in dead.units.values())
        for name, unit in dead.units.items():
            is_computed = unit.span is not None if is_any_alone else not unit.is_alone
            if is_computed and name in self._attempts:
                attempts = self._attempts[name]
                attempts.lost() if is_blameless else attempts.died(unit.span)


def this_replica() -> str:
    """Return the actor's id, which stays when Ray restarts it."""
    name = ray.get_runtime_context().get_actor_id()
    assert name is not None, "called by a replica, which is an actor"
    return name
