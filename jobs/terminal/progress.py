"""Progress is what a job's events add up to: counts, rates and the time left. It prints nothing."""

import time
from collections import deque
from collections.abc import Callable

from batchloom.pipelines.metrics import Event, Finished, Planned, ReplicasStarting, UnitDone

WINDOW = 64  # finished units that a rate looks back on: long enough to be calm, short enough to follow a change

MIN_SECONDS = 1.0  # before that, units that finish side by side look like a wonder of speed


class Progress:
    """Feed it events; read it at any time. Rates count only what this run computed, never what it found done."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._window: deque[tuple[float, int, int]] = deque(maxlen=WINDOW)  # (when, rows so far, tokens so far)
        self.stage = "Looking at the model and the shards"
        self.is_running = False
        """A first unit of this run is done: rates mean something."""
        self.num_units = self.num_units_done = self.num_units_found = 0
        self.num_rows = self.num_rows_done = 0
        self.num_tokens = self.num_errors = 0
        """Of the units of this run."""

    def __call__(self, event: Event) -> None:
        match event:
            case Planned():
                self.num_units = event.num_units
                self.num_units_done = self.num_units_found = event.num_units_done
                self.num_rows, self.num_rows_done = event.num_rows, event.num_rows_done
                self.stage = "Opening the output"
            case ReplicasStarting():
                self.stage = "Starting Ray and loading the model"
            case UnitDone(record):
                self.is_running = True
                self.num_units_done += 1
                self.num_rows_done += record.num_rows
                self.num_tokens += record.num_input_tokens + record.num_output_tokens
                self.num_errors += record.num_errors
                self._window.append((self._clock(), self.num_rows_done, self.num_tokens))
            case Finished():
                self.is_running = False
                self.stage = "Closing the job"

    @property
    def seconds(self) -> float:
        """Since this object was made."""
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
        """None while nothing is known."""
        rate = self.rows_per_second
        return (self.num_rows - self.num_rows_done) / rate if rate else None

    def _rates(self) -> tuple[float, float]:
        """Rows and tokens a second since the oldest unit of the window; until now, so that a stall shows.

        The first unit sets the clock and is not counted: its time is mostly the start of Ray and of the model.
        """
        if not self._window:
            return 0.0, 0.0
        when, rows, tokens = self._window[0]
        seconds = self._clock() - when
        if seconds < MIN_SECONDS:
            return 0.0, 0.0
        return (self.num_rows_done - rows) / seconds, (self.num_tokens - tokens) / seconds
