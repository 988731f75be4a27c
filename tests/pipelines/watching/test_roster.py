"""The roster knows what each replica computes, and blames for a death what was computed at it."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from batchloom.pipelines.config import LimitsConfig
from batchloom.pipelines.telemetry.usage import Usage
from batchloom.pipelines.watching import roster
from batchloom.pipelines.watching.attempts import Attempt
from batchloom.pipelines.watching.roster import MAX_FAILED_UNITS, Entries, Process, Roster, Sight
from batchloom.pipelines.watching.watchdog import (
    SILENT_SECONDS,
    STALL_PAUSES,
    STALL_SECONDS,
    is_silent,
    is_stalled,
)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def entries(clock: Clock) -> Entries:
    entries = Entries(max_attempts=5, num_units=100, clock=clock)
    begin(entries, 1)
    return entries


def begin(entries: Entries, process: int, node: str = "n", alive: tuple[str, ...] = ("n",)) -> str | None:
    refusal = entries.begin("r", Process(node, process, "0"), alive)
    if refusal is None:
        entries.ready("r")
    return refusal


def look(entries: Entries) -> Sight:
    (sight,) = entries.look()
    return sight


def test_progress_is_a_step_or_the_end_of_a_unit(entries: Entries, clock: Clock) -> None:
    process = Process("n", 1, "0")
    entries.take("r", "u", "a-0-10", 10)
    clock.now = 5.0
    entries.report("r", process, 0, Usage())
    assert (look(entries).heard, look(entries).progressed) == (0.0, 5.0)
    clock.now = 8.0
    entries.report("r", process, 3, Usage())
    assert (look(entries).progressed, look(entries).longest_pause, look(entries).units) == (
        0.0,
        8.0,
        (("a-0-10", 8.0),),
    )
    clock.now = 100.0
    entries.done("r", "u", Usage())
    clock.now = 500.0
    entries.take("r", "v", "b", 10)
    assert (look(entries).progressed, look(entries).longest_pause) == (0.0, 8.0)  # it had nothing to do meanwhile


def test_units_in_flight_at_two_deaths_are_computed_alone(entries: Entries) -> None:
    for process in (2, 3):
        assert entries.take("r", "u", "u", 10) == entries.take("r", "v", "v", 10) == Attempt()
        begin(entries, process)
    assert entries.take("r", "u", "u", 10) == Attempt([(0, 10)])
    entries.enter("r", "u", 0)
    assert entries.take("r", "v", "v", 10) == Attempt([(0, 10)])  # it waits for its turn
    assert entries.take("r", "w", "w", 10) == Attempt()
    begin(entries, 4)
    assert entries.take("r", "u", "u", 10) == Attempt([(0, 5), (5, 10)])
    assert entries.take("r", "v", "v", 10) == Attempt([(0, 10)])  # waiting is no fault
    assert entries.take("r", "w", "w", 10) == Attempt()


def test_a_unit_that_waits_to_be_alone_is_not_blamed_for_what_is_computed_before_it(entries: Entries) -> None:
    for process in (2, 3):
        entries.take("r", "v", "v", 10)
        begin(entries, process)
    for process in range(4, 10):
        assert entries.take("r", "v", "v", 10) == Attempt([(0, 10)])
        entries.take("r", f"w{process}", "w", 10)
        begin(entries, process)


def test_a_unit_that_was_answered_is_not_blamed_later(entries: Entries) -> None:
    for process in range(2, 9):
        assert entries.take("r", "u", "u", 10) == Attempt()
        entries.done("r", "u", Usage())
        begin(entries, process)


def test_a_lost_node_is_no_fault_of_a_unit(entries: Entries) -> None:
    for process in range(2, 7):
        assert entries.take("r", "u", "u", 10) == Attempt()
        begin(entries, process, node=f"n{process}", alive=(f"n{process}",))
    assert "limits.max_unit_attempts" in str(entries.take("r", "u", "u", 10).failure)


def test_an_end_by_the_watchdog_for_silence_is_no_fault_of_a_unit(entries: Entries) -> None:
    for process in (2, 3, 4):
        assert entries.take("r", "u", "u", 10) == Attempt()
        entries.blameless("r")
        begin(entries, process)
    assert entries.take("r", "u", "u", 10) == Attempt()


def test_the_job_ends_where_unit_after_unit_fails(entries: Entries) -> None:
    process = 1
    for unit in range(MAX_FAILED_UNITS):
        while entries.take("r", f"u{unit}", "u", 1).failure is None:
            process += 1
            begin(entries, process, node=f"n{process}", alive=())
    assert "Replicas die of whatever they compute" in str(begin(entries, process + 1))
    entries.done("r", "other", Usage())
    assert begin(entries, process + 2) is None


def test_what_a_dead_process_sent_changes_nothing(entries: Entries, clock: Clock) -> None:
    begin(entries, 2)
    clock.now = 9.0
    entries.report("r", Process("n", 1, "0"), 5, Usage())
    assert look(entries).heard == 9.0


def test_a_roster_that_was_lost_learns_of_replicas_by_their_reports(clock: Clock) -> None:
    entries = Entries(max_attempts=5, num_units=100, clock=clock)
    entries.report("r", Process("n", 1, "0"), 5, Usage())
    assert look(entries).process.id == 1
    assert look(entries).is_ready
    entries.leave("r", "u", 0)
    entries.done("r", "u", Usage())


def test_times_of_all_processes_of_a_replica_add_up_and_a_wait_is_seen_while_it_lasts(
    entries: Entries, clock: Clock
) -> None:
    first, second = Process("n", 1, "0"), Process("n", 2, "0")
    entries.report("r", first, 3, Usage(loading=5.0, computing=20.0, waiting=1.0))
    begin(entries, 2)
    assert look(entries).usage == Usage(loading=5.0, computing=20.0, waiting=1.0)
    entries.report("r", second, 0, Usage(loading=6.0))
    assert look(entries).usage == Usage(loading=11.0, computing=20.0, waiting=1.0)
    clock.now = 30.0
    entries.report("r", second, 0, Usage(loading=6.0))
    assert look(entries).usage.waiting == 31.0
    clock.now = 90.0
    assert look(entries).usage.waiting == 31.0  # nothing was heard of it since: it may be gone
    entries.report("r", second, 0, Usage(loading=6.0))
    assert look(entries).usage.waiting == 91.0
    for number in range(100):
        entries.take("r", f"u{number}", "u", 10)
    entries.report("r", second, 0, Usage(loading=6.0, waiting=90.0))  # as the replica itself has it
    assert look(entries).usage.waiting == 91.0
    for number in range(100):
        entries.done("r", f"u{number}", Usage(loading=6.0, computing=7.0, waiting=90.0))
    clock.now = 200.0
    entries.report("r", second, 9, Usage(loading=6.0, computing=7.0, waiting=90.0))
    assert look(entries).usage == Usage(loading=11.0, computing=27.0, waiting=91.0)  # nothing is left to wait for


def test_units_that_were_joined_are_not_waited_for_when_all_are_computed(entries: Entries, clock: Clock) -> None:
    """Where few rows are chosen there are fewer units than were planned."""
    clock.now = 7.0
    entries.report("r", Process("n", 1, "0"), 0, Usage())
    assert look(entries).usage.waiting == 7.0
    entries.over()
    assert look(entries).usage.waiting == 0.0


def sight(**changes: object) -> Sight:
    values = {"replica": "r", "process": Process("n", 1, "0"), "is_ready": True, "heard": 1.0, "progressed": 1.0}
    return Sight(**(values | {"longest_pause": 2.0, "units": (("u", 1.0),)} | changes))


@pytest.mark.parametrize(
    ("seen", "stall_minutes", "stalled", "silent"),
    [
        (sight(progressed=STALL_SECONDS - 1), None, False, False),
        (sight(progressed=STALL_SECONDS + 1), None, True, False),
        (sight(progressed=STALL_SECONDS + 1, units=()), None, False, False),  # it has no work
        (sight(progressed=STALL_SECONDS + 1, is_ready=False), None, False, False),  # a model may load for hours
        (sight(progressed=STALL_SECONDS + 1, longest_pause=STALL_SECONDS), None, False, False),  # slow, and healthy
        (sight(progressed=STALL_PAUSES * 100 + 1, longest_pause=100.0), None, True, False),
        (sight(progressed=61), 1.0, True, False),
        (sight(heard=SILENT_SECONDS + 1), None, False, True),
        (sight(heard=61, units=()), 1.0, False, True),
    ],
)
def test_a_replica_is_ended_where_it_makes_no_step_or_says_nothing(
    seen: Sight, stall_minutes: float | None, stalled: bool, silent: bool
) -> None:
    limits = LimitsConfig(stall_minutes=stall_minutes)
    assert (is_stalled(seen, limits), is_silent(seen, limits)) == (stalled, silent)


def test_the_roster_lives_on_the_drivers_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a soft affinity Ray places an actor without resources anywhere: it died with a node that left, and with it
    went all counts of deaths."""
    asked: dict[str, Any] = {}
    actor = SimpleNamespace(remote=lambda *_: "actor")
    monkeypatch.setattr(roster.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "ab" * 28))
    monkeypatch.setattr(
        roster.ray, "remote", lambda **_: lambda _: SimpleNamespace(options=lambda **kw: asked.update(kw) or actor)
    )
    Roster(5, 100)
    strategy = asked["scheduling_strategy"]
    assert (strategy.node_id, strategy.soft) == ("ab" * 28, False)
