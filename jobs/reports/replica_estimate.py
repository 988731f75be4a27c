"""Estimate a replica's memory and its speed at best, from counts of parameters and bytes."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from batchloom.jobs.reports import wording
from batchloom.jobs.reports.assumption import Assumption
from batchloom.models import Machine
from batchloom.pipelines.planning.job_plan import JobPlan

# Sequences that an accelerator decodes at a time where memory allows: models/generation/engine.py.
MOST_ROWS = 512
UNLIMITED_TOKENS = 1024  # that a sequence is assumed to look back at, where positions are not limited


@dataclass(frozen=True)
class ReplicaEstimate:
    """`asked_tokens`: keys that a running sequence attends to, its source or prompt included; None: as many as the
    model has room for."""

    plan: JobPlan
    assumption: Assumption
    asked_tokens: int | None = None

    @cached_property
    def machine(self) -> Machine:
        """What one replica has of a GPU."""
        machine, share = self.assumption.machine, self.plan.config.engine.gpus_per_replica
        return replace(machine, memory=share * machine.memory)

    @property
    def num_tokens(self) -> int:
        return self.asked_tokens or self._longest

    @property
    def _longest(self) -> int:
        """The most that a sequence attends to: all positions, and beside an encoder those of the answer."""
        positions = self.plan.checkpoint.max_positions or UNLIMITED_TOKENS
        if not self.plan.checkpoint.has_encoder:
            return positions
        generation = self.plan.generation
        answer = generation.get("max_new_tokens") or generation.get("max_length") or positions
        return positions + min(self.plan.task.num_prefix_tokens + answer, positions)

    def values(self) -> dict[str, Any]:
        """Return bytes and seconds. CPUs get no speed, and tasks without a decode loop no steps."""
        footprint = self.plan.footprint
        found = {
            "num_ranks": footprint.num_ranks,
            "dtype": footprint.dtype,
            "num_parameters_of_rank": footprint.num_parameters,
            "weight_bytes_of_rank": footprint.weight_bytes,
            "loading_seconds": footprint.loading_seconds(self.machine),
        }
        if not self.plan.generation:
            return found
        found["cache_bytes_a_token"] = footprint.cached_token_bytes
        if self.plan.config.engine.wanted_device == "cpu":
            return found
        room = footprint.cached_tokens(self.machine)
        rows = min(MOST_ROWS, room // self.num_tokens)
        return found | {
            "machine": self.machine.name,
            "cached_tokens": room,
            "tokens_a_sequence": self.num_tokens,
            "num_sequences": rows,
            "step_seconds_of_one": footprint.step_seconds(self.machine, 1, self.num_tokens),
            "step_seconds": footprint.step_seconds(self.machine, rows, self.num_tokens) if rows else None,
        }

    def words(self) -> dict[str, str]:
        values, metric = self.values(), wording.metric
        ranks = wording.plural(values["num_ranks"], "rank")
        told = {
            "Replica": f"{ranks}, {self._dtypes()}, {values['num_parameters_of_rank']:,} parameters each",
            "Weights": f"{metric(values['weight_bytes_of_rank'], 'B')} a rank, read once: "
            f"{wording.duration(values['loading_seconds'])} if storage gives {metric(self.machine.storage, 'B/s')}",
        }
        if "cache_bytes_a_token" in values:
            told["Cache"] = f"{metric(values['cache_bytes_a_token'], 'B')} a token and rank"
        if "cached_tokens" in values:
            told["Cache"] += f", room for {values['cached_tokens']:,} tokens in {metric(self.machine.memory, 'B')}"
            told["Step"] = self._step(values)
            told["Machine"] = self.assumption.words(values["dtype"])
        return told

    def _dtypes(self) -> str:
        """Return the dtype of a replica; of one that is on a GPU or not, both."""
        engine, dtype = self.plan.config.engine, self.plan.footprint.dtype
        on_cpus = self.plan.dtype_on("cpu")
        return dtype if engine.wanted_device != "auto" or dtype == on_cpus else f"{dtype} ({on_cpus} on CPUs)"

    def _step(self, values: dict[str, Any]) -> str:
        if not values["num_sequences"]:
            return f"no room for a sequence of {self.num_tokens:,} tokens: more ranks, or a larger device"
        rows, one = values["num_sequences"], wording.metric(values["step_seconds_of_one"], "s")
        return (
            f"{one} for one sequence, {wording.metric(values['step_seconds'], 's')} for {rows} that look back at "
            f"{self.num_tokens:,} tokens: {wording.rate(rows / values['step_seconds'])} tokens/s at best, which no run "
            "reaches (--probe measures)"
        )
