"""A job's progress, summed from its events: counts, rates and the time left. It prints nothing."""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from batchloom.pipelines.metrics import (
    Event,
    Finished,
    PartDone,
    PartFailed,
    Planned,
    Replicas,
    ReplicasStarting,
    UnitDone,
    UnitFailed,
)
from batchloom.pipelines.telemetry.measures import add, padding, stage_seconds
from batchloom.pipelines.telemetry.usage import hint, starved_by

WINDOW = 64  # finished units that rates are averaged over: enough to be steady, few enough to follow a change

MIN_SECONDS = 1.0  # rates over less time are not shown: units that finish together would make them absurdly high


class Progress:
    """Call it with events, read it at any time. Rates count what this run computed, not what it found done."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._window: deque[tuple[float, int, int, int]] = deque(maxlen=WINDOW)
        """(when, rows so far, input tokens so far, output tokens so far)"""
        self.stage = "Looking at the model and the shards"
        self.is_running = False
        """True from what this run finished first to the end of the job: figures are more useful than the stage."""
        self.num_units = self.num_units_done = self.num_units_found = self.num_units_failed = 0
        self.num_rows = self.num_rows_done = 0
        self.num_parts = self.num_parts_done = self.num_parts_failed = 0
        """Of those that this run writes."""
        self.num_errors = 0
        """Of rows that are done, also before this run."""
        self.num_input_tokens = self.num_output_tokens = 0
        """Of the units of this run."""
        self.errors_by_kind: Counter[str] = Counter()
        """Of the units of this run."""
        self.replicas = Replicas(0, 0)
        """As they were told of last."""
        self._measures: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case Planned():
                self.num_units = event.num_units
                self.num_units_done = self.num_units_found = event.num_units_done
                self.num_rows, self.num_rows_done = event.num_rows, event.num_rows_done
                self.num_parts, self.num_errors = event.num_parts, event.num_errors_done
                parts = f"{self.num_parts:,} part{'' if self.num_parts == 1 else 's'}"
                self.stage = "Opening the output" if self.computes else f"Writing {parts} anew"
            case ReplicasStarting():
                self.stage = "Starting Ray and loading the model"
            case UnitDone(record, measures):
                add(self._measures, measures)
                self.is_running = True
                self.num_units_done += 1
                self.num_rows_done += record.num_covered
                self.num_input_tokens += record.num_input_tokens
                self.num_output_tokens += record.num_output_tokens
                self.num_errors += record.num_errors
                self.errors_by_kind.update(record.errors_by_kind)
                self._window.append((self._clock(), self.num_rows_done, self.num_input_tokens, self.num_output_tokens))
            case Replicas():
                self.replicas = event
            case PartDone():
                self.is_running = self.is_running or not self.computes
                self.num_parts_done += 1
            case PartFailed():
                self.num_parts_failed += 1
            case UnitFailed():
                self.num_units_failed += 1
            case Finished():
                self.is_running = False
                self.stage = "Closing the job"

    @property
    def computes(self) -> bool:
        """Whether this run has units to compute. Else it only writes parts, of answers that are there."""
        return self.num_units_found < self.num_units or not self.num_parts

    @property
    def done_of(self) -> tuple[int, int]:
        """(rows that are done, all rows); parts, where nothing is computed."""
        if self.computes:
            return self.num_rows_done, self.num_rows
        return self.num_parts_done, self.num_parts

    @property
    def seconds(self) -> float:
        """Seconds since this object was created."""
        return self._clock() - self._started

    @property
    def rows_per_second(self) -> float:
        return self._rates()[0]

    @property
    def input_tokens_per_second(self) -> float:
        return self._rates()[1]

    @property
    def output_tokens_per_second(self) -> float:
        return self._rates()[2]

    @property
    def padding(self) -> float | None:
        """Computed over real prompt tokens of this run: 1.0 is no padding. None while nothing was computed."""
        return padding(self._measures)

    @property
    def starved_by(self) -> str | None:
        """The stage that replicas wait for; None where they compute most of their time."""
        return starved_by(self.replicas.usage, stage_seconds(self._measures), self.replicas.num_ready)

    @property
    def hint(self) -> str:
        """What would let replicas wait less; empty where they hardly do."""
        stage = self.starved_by
        return "" if stage is None else hint(self.replicas.usage, stage)

    @property
    def seconds_left(self) -> float | None:
        """None while there is no rate yet."""
        rate = self.rows_per_second
        return (self.num_rows - self.num_rows_done) / rate if rate else None

    def values(self) -> dict[str, Any]:
        """Return what scripts want to know, by name."""
        return {
            "stage": "" if self.is_running else self.stage,
            "num_rows": self.num_rows,
            "num_rows_done": self.num_rows_done,
            "num_units": self.num_units,
            "num_units_done": self.num_units_done,
            "num_units_failed": self.num_units_failed,
            "num_units_in_flight": self.replicas.num_units,
            "num_errors": self.num_errors,
            "errors_by_kind": dict(self.errors_by_kind),
            "rows_per_second": self.rows_per_second,
            "input_tokens_per_second": self.input_tokens_per_second,
            "output_tokens_per_second": self.output_tokens_per_second,
            "seconds_left": self.seconds_left,
            "padding": self.padding,
            "num_replicas": self.replicas.num_ready,
            "num_replicas_starting": self.replicas.num_starting,
            "usage": asdict(self.replicas.usage),
            "hint": self.hint,
        }

    def _rates(self) -> tuple[float, float, float]:
        """Return rows and tokens in and out a second, from the oldest unit of the window until now, so that a stall
        shows.

        That oldest unit starts the clock and is not counted: the time of a run's first unit includes the start-up.
        """
        if not self._window:
            return 0.0, 0.0, 0.0
        when, *before = self._window[0]
        seconds = self._clock() - when
        if seconds < MIN_SECONDS:
            return 0.0, 0.0, 0.0
        now = (self.num_rows_done, self.num_input_tokens, self.num_output_tokens)
        rows, tokens_in, tokens_out = ((one - other) / seconds for one, other in zip(now, before, strict=True))
        return rows, tokens_in, tokens_out
