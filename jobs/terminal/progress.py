"""A job's progress, summed from its events: counts, rates and the time left. It prints nothing."""

import time
from collections import deque
from collections.abc import Callable

from batchloom.jobs.reports.wording import plural
from batchloom.pipelines.metrics import (
    Event,
    Finished,
    PartDone,
    PartFailed,
    Planned,
    ReplicasStarting,
    UnitDone,
    UnitFailed,
)

WINDOW = 64  # finished units that rates are averaged over: enough to be steady, few enough to follow a change

MIN_SECONDS = 1.0  # rates over less time are not shown: units that finish together would make them absurdly high


class Progress:
    """Call it with events, read it at any time. Rates count what this run computed, not what it found done."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._window: deque[tuple[float, int, int]] = deque(maxlen=WINDOW)  # (when, rows so far, tokens so far)
        self.stage = "Looking at the model and the shards"
        self.is_running = False
        """True from what this run finished first to the end of the job: figures are more useful than the stage."""
        self.num_units = self.num_units_done = self.num_units_found = self.num_units_failed = 0
        self.num_rows = self.num_rows_done = 0
        self.num_parts = self.num_parts_done = self.num_parts_failed = 0
        """Of those that this run writes."""
        self.num_errors = 0
        """Of rows that are done, also before this run."""
        self.num_tokens = 0
        """Of the units of this run."""

    def __call__(self, event: Event) -> None:
        match event:
            case Planned():
                self.num_units = event.num_units
                self.num_units_done = self.num_units_found = event.num_units_done
                self.num_rows, self.num_rows_done = event.num_rows, event.num_rows_done
                self.num_parts, self.num_errors = event.num_parts, event.num_errors_done
                self.stage = "Opening the output" if self.computes else f"Writing {plural(self.num_parts, 'part')} anew"
            case ReplicasStarting():
                self.stage = "Starting Ray and loading the model"
            case UnitDone(record):
                self.is_running = True
                self.num_units_done += 1
                self.num_rows_done += record.num_covered
                self.num_tokens += record.num_input_tokens + record.num_output_tokens
                self.num_errors += record.num_errors
                self._window.append((self._clock(), self.num_rows_done, self.num_tokens))
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
    def tokens_per_second(self) -> float:
        """Input and output tokens together."""
        return self._rates()[1]

    @property
    def seconds_left(self) -> float | None:
        """None while there is no rate yet."""
        rate = self.rows_per_second
        return (self.num_rows - self.num_rows_done) / rate if rate else None

    def _rates(self) -> tuple[float, float]:
        """Return rows and tokens a second, from the oldest unit of the window until now, so that a stall shows.

        That oldest unit starts the clock and is not counted: the time of a run's first unit includes the start-up.
        """
        if not self._window:
            return 0.0, 0.0
        when, rows, tokens = self._window[0]
        seconds = self._clock() - when
        if seconds < MIN_SECONDS:
            return 0.0, 0.0
        return (self.num_rows_done - rows) / seconds, (self.num_tokens - tokens) / seconds
