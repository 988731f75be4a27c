"""A rehearsal: what one replica made of some rows of a job, and how long all will take. It knows no Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchloom.pipelines.forecasting.expected import Expected

UNIT_SECONDS = 0.06  # of the one driver, for a unit of whatever size: docs/scaling.md
PROMPT_TOKENS = ("engine_prompt_tokens", "engine_padded_tokens")


@dataclass(frozen=True, kw_only=True)
class Round:
    """Rows that were computed together."""

    num_rows: int
    seconds: float
    measures: Mapping[str, float]
    """Of the replica."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What one replica made of some rows, and what that means for all."""

    machine: str
    """What the replica computed on."""
    dtype: str
    num_rows: int
    """That were computed, in all rounds."""
    startup_seconds: float
    """Until the replica was there: Ray's start, that of other stages, and beside it the loading of the model."""
    loading_seconds: float
    """Of these, for the model."""
    rounds: Sequence[Round]
    all_rows: float
    """Of the job, that are answered."""
    num_units: int
    """Of the job: no more replicas than that have work."""
    output_tokens: Expected
    errors: Mapping[str, Expected]
    """Rows by the kind of an error that the model or the answer gave."""
    at_length: Expected
    """Rows whose answer ended at its maximum length."""
    stage_seconds_a_row: float
    """Of a core, for tokenizing a row and finishing its answer."""
    num_cpus: int
    """That each replica has for these stages."""
    shares_cpus: bool
    """The replica computes on these CPUs too."""

    @property
    def seconds_a_row(self) -> float:
        """Of one replica that computes without a break."""
        last = self.rounds[-1]
        if len(self.rounds) < 3:  # the first one warms up
            return last.seconds / last.num_rows
        before = self.rounds[-2]
        slope = (last.seconds - before.seconds) / (last.num_rows - before.num_rows)
        return min(slope, last.seconds / last.num_rows) if slope > 0 else last.seconds / last.num_rows

    def compute_seconds(self, num_replicas: int) -> float:
        """Return how long all rows take, on as many replicas. On CPUs, the other stages take their time from the
        replica; beside a GPU, they are slower than it or they are not seen."""
        most_units = -(-self.num_units // num_replicas)  # that one of them computes
        share = most_units / max(1, self.num_units)
        replica = self.all_rows * self.seconds_a_row * share
        stages = self.all_rows * self.stage_seconds_a_row / self.num_cpus * share
        if self.shares_cpus:
            return replica + stages + UNIT_SECONDS * most_units
        return max(replica, stages, UNIT_SECONDS * self.num_units)

    def total_seconds(self, num_replicas: int) -> float:
        """Return how long the job takes from its start, where as many replicas start at once."""
        return self.startup_seconds + self.compute_seconds(num_replicas)

    @property
    def padding(self) -> float:
        """Computed over real prompt tokens: 1.0 is no padding."""
        real, computed = (sum(one.measures.get(name, 0) for one in self.rounds) for name in PROMPT_TOKENS)
        return computed / real if real else 1.0
