from dataclasses import dataclass, replace
from typing import Any

import pytest
from rich.console import Console

from batchloom.jobs.terminal.output import event_values
from batchloom.jobs.terminal.progress_line import PLAIN_SECONDS, JsonLines, LiveLine, PlainLines, figures
from batchloom.pipelines.counts import PartRecord, UnitRecord
from batchloom.pipelines.metrics import (
    Event,
    PartDone,
    PartFailed,
    Planned,
    Replicas,
    ReplicasStarting,
    Retrying,
    UnitDone,
)
from batchloom.pipelines.telemetry.usage import Usage
from batchloom.pipelines.watching.progress import Progress


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def unit(num_rows: int = 100, **changes: Any) -> UnitDone:
    values: dict[str, Any] = {
        "part": "p", "ranges": ((0, num_rows),), "num_rows": num_rows, "num_errors": 0,
        "num_input_tokens": 900, "num_output_tokens": 100, "num_truncated_tokens": 0,
    }  # fmt: skip
    return UnitDone(UnitRecord(**values | changes))


PLANNED = Planned(num_shards=2, num_units=10, num_rows=1000, num_units_done=2, num_rows_done=200)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def progress(clock: Clock) -> Progress:
    progress = Progress(clock)
    progress(PLANNED)
    progress(ReplicasStarting())
    return progress


def test_rates_start_with_the_first_unit_and_leave_out_what_was_found_done(progress: Progress, clock: Clock) -> None:
    clock.now = 60.0  # Ray and the model
    progress(unit())
    assert (progress.num_rows_done, progress.rows_per_second, progress.seconds_left) == (300, 0.0, None)
    clock.now = 70.0
    progress(unit(num_errors=3))
    assert progress.rows_per_second == 10.0
    assert (progress.input_tokens_per_second, progress.output_tokens_per_second) == (90.0, 10.0)
    assert progress.seconds_left == 60.0
    assert progress.num_errors == 3


def test_a_rate_sinks_while_nothing_comes(progress: Progress, clock: Clock) -> None:
    progress(unit())
    clock.now = 10.0
    progress(unit())
    clock.now = 100.0
    assert progress.rows_per_second == 1.0


def test_units_that_finish_at_once_give_no_rate(progress: Progress, clock: Clock) -> None:
    """Two units in flight end side by side: the first line said 354 rows/s and 0.7 s left."""
    progress(unit())
    clock.now = 0.1
    progress(unit())
    assert progress.rows_per_second == 0.0


def test_figures_come_in_the_order_in_which_they_are_wanted(progress: Progress, clock: Clock) -> None:
    computed = {"engine_prompt_tokens": 900.0, "engine_padded_tokens": 990.0, "tokenize_seconds": 30.0}
    progress(replace(unit(), measures=computed))
    clock.now = 10.0
    progress(replace(unit(num_errors=1, errors_by_kind={"too_long": 1}), measures=computed))
    progress(Replicas(1, 3, 2, Usage(loading=30.0, computing=6.0, waiting=6.0)))
    expected = [
        "400/1,000 rows", "1 min 00 s left", "1 error (1 too_long)", "10.0 rows/s", "90.0 tokens/s in, 10.0 out",
        "1 replica, 3 pending", "4/10 units, 2 in flight", "padding 1.10", "starved by tokenization",
    ]  # fmt: skip
    assert figures(progress) == expected
    progress(Replicas(4, 0, 8, Usage(loading=30.0, computing=60.0, waiting=6.0)))
    assert figures(progress) == [*expected[:5], "4 replicas", "4/10 units, 8 in flight", "padding 1.10"]


def test_scripts_see_what_people_see(progress: Progress, clock: Clock) -> None:
    told: list[Any] = []
    watch = JsonLines(progress, event_values, told.append, clock)
    clock.now = 1.0
    watch(replace(unit(num_errors=1, errors_by_kind={"too_long": 1}), measures={"engine_prompt_tokens": 900.0}))
    assert [one["event"] for one in told] == ["unit_done"]
    assert told[0]["measures"] == {"engine_prompt_tokens": 900.0}
    clock.now = 11.0
    watch(Replicas(1, 1, 2, Usage(computing=1.0)))
    assert [one["event"] for one in told] == ["unit_done", "replicas", "progress"]
    assert told[2]["rows_per_second"] == 0.0  # one unit has no rate
    clock.now = 21.0
    watch(unit())
    last = told[-1]
    assert (last["event"], last["num_rows_done"], last["num_rows"], last["seconds_left"]) == (
        "progress", 400, 1000, 120.0,
    )  # fmt: skip
    assert (last["rows_per_second"], last["input_tokens_per_second"], last["output_tokens_per_second"]) == (5, 45, 5)
    assert (last["num_replicas"], last["num_replicas_starting"], last["num_units_in_flight"]) == (1, 1, 2)
    assert (last["errors_by_kind"], last["padding"], last["hint"]) == ({"too_long": 1}, 0.0, "")
    assert last["usage"]["computing"] == 1.0


def test_a_log_tells_of_a_long_unit_too(clock: Clock) -> None:
    told: list[str] = []
    watch = PlainLines(Progress(clock), told.append, clock)
    for event in (PLANNED, unit(), Replicas(1, 0, 1)):
        clock.now += PLAIN_SECONDS / 4
        watch(event)
    clock.now = 100.0
    watch(Replicas(1, 0, 2))
    assert [line.split("  ")[0] for line in told[1:]] == ["300/1,000 rows", "300/1,000 rows"]
    assert told[-1].endswith("1 replica  3/10 units, 2 in flight")


@pytest.mark.parametrize("width", range(12, 60))
def test_no_word_is_broken_at_any_width(clock: Clock, width: int) -> None:
    progress = Progress(clock)
    progress(replace(PLANNED, num_rows=2_000_000))
    progress(ReplicasStarting())
    words = {"Starting", "Ray", "and", "loading", "the", "model", "(0.0", "s)", "…"}
    assert set(shown(progress, width).split()[1:]) <= words
    progress(unit())
    clock.now = 10.0
    progress(unit())
    line = shown(progress, width)
    assert "%" in line or "400/2,000,000 rows" in line


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_a_live_line_stays_one_line_at_every_width(progress: Progress, clock: Clock, width: int) -> None:
    progress(unit())
    clock.now = 10.0
    progress(unit())
    line = shown(progress, width)
    assert ("4/10 units" in line) == (width >= 120)
    assert "400/1" in line


def shown(progress: Progress, width: int) -> str:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(LiveLine(progress))
    (line,) = captured.get().rstrip("\n").split("\n")
    assert len(line) <= width
    return line


def test_plain_lines_are_few_and_the_last_one_comes(clock: Clock) -> None:
    told: list[str] = []
    watch = PlainLines(Progress(clock), told.append, clock)
    events: list[Event] = [PLANNED, ReplicasStarting(), *[unit()] * 8]
    for event in events:
        clock.now += PLAIN_SECONDS / 4
        watch(event)
    assert told[0] == "1,000 rows of 2 shards in 10 units; 200 rows in 2 units are done already"
    assert told[1] == "Starting Ray and loading the model"
    assert [line.split()[0] for line in told[2:]] == ["300/1,000", "700/1,000", "1,000/1,000"]


def test_parts_are_counted_where_nothing_is_computed(clock: Clock) -> None:
    """Other kept columns were written for 25 s without a word."""
    told: list[str] = []
    progress = Progress(clock)
    watch = PlainLines(progress, told.append, clock)
    watch(Planned(num_shards=2, num_units=10, num_rows=1000, num_units_done=10, num_rows_done=1000, num_parts=5))
    assert progress.stage == "Writing 5 parts anew"
    counts = {
        "num_rows": 200,
        "num_errors": 0,
        "num_input_tokens": 1,
        "num_output_tokens": 1,
        "num_truncated_tokens": 0,
    }
    part = PartDone(PartRecord(part="p", spans=(), layout="l", bytes=1, sha256="", **counts))
    for event in (part, part, part, PartFailed("a", 0, 1, "full"), part):
        clock.now += PLAIN_SECONDS / 2
        watch(event)
    assert told[1:] == ["1/5 parts written anew", "3/5 parts written anew", "4/5 parts written anew  1 part failed"]
    assert progress.done_of == (4, 5)
    assert progress.num_units_failed == 0


def test_errors_of_rows_that_were_done_before_are_counted(clock: Clock) -> None:
    """26 errors stood beside 180/180 rows, and then the result had 93."""
    progress = Progress(clock)
    progress(replace(PLANNED, num_errors_done=67))
    progress(unit(num_errors=26))
    assert figures(progress)[:2] == ["300/1,000 rows", "93 errors"]


def test_errors_of_kinds_that_nobody_asked_for_are_named(progress: Progress) -> None:
    told: list[str] = []
    watch = PlainLines(progress, told.append)
    watch(Retrying(0, {}, {"damaged_input": 24}))
    watch(Retrying(0, {}))
    assert told == ["No row has an error of these kinds, but 24 damaged_input", "No row has an error to retry"]
