"""What a job would do: rows, units, what is done already, parameters, a replica's memory and speed.

It starts and writes nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from batchloom import pipelines
from batchloom.jobs.reports import wording
from batchloom.jobs.reports.replica_estimate import ReplicaEstimate
from batchloom.models import Machine
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import OutputError
from batchloom.pipelines.ledger import ledger, ownership
from batchloom.pipelines.ledger.register import Register
from batchloom.pipelines.ledger.resume import Done
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.running.forecast import Forecast


@dataclass(frozen=True)
class DryRun:
    """A job's plan and the state of its output."""

    plan: JobPlan
    found: ledger.Found
    replica: ReplicaEstimate
    done: Done | None
    """What is there of the job; None where `run` would refuse the output."""
    forecast: Forecast | None = None
    """None where no rows were to be read."""

    @staticmethod
    def of(config: JobConfig, machine: Machine, num_tokens: int, num_sampled: int = 0) -> "DryRun":
        """Plan the job. Raises: ConfigError or ModelError where the job cannot run."""
        plan = pipelines.plan(config)
        found = ledger.look(plan.output)
        share = replace(machine, memory=config.engine.gpus_per_replica * machine.memory)
        forecast = Forecast.of(plan, num_sampled) if num_sampled else None
        return DryRun(plan, found, ReplicaEstimate(plan, share, num_tokens), _done(plan, found), forecast)

    def refuse(self) -> None:
        """Do nothing where `run` would accept the output. Raises: OutputError where it would refuse it."""
        if self.done is None:
            ownership.refuse_foreign(self.plan, self.found)
            Done.find(self.plan, self.found)

    def values(self) -> dict[str, Any]:
        plan, (num_units_left, num_rows_left) = self.plan, self._left()
        return {
            "task": plan.config.task,
            "model": plan.config.model,
            "num_shards": len(plan.shards),
            "num_units": plan.num_units,
            "num_rows": plan.num_rows,
            "num_bytes": sum(shard.source.size or 0 for shard in plan.shards),
            "num_units_done": plan.num_units - num_units_left,
            "num_rows_done": plan.num_rows - num_rows_left,
            "output": plan.config.output.path,
            "columns": [*plan.columns.names, *plan.config.output.partition_by],
            "generation": dict(plan.generation),
            "task_options": plan.task.settings(),
            "notes": list(plan.notes),
            "fingerprint": plan.fingerprint,
            "replica": self.replica.values(),
            "forecast": None if self.forecast is None else asdict(self.forecast),
        }

    def words(self) -> dict[str, str]:
        values = self.values()
        rows, units = wording.plural(values["num_rows"], "row"), wording.plural(values["num_units"], "unit")
        shards, size = wording.plural(values["num_shards"], "shard"), wording.size(values["num_bytes"])
        return {
            "Task": values["task"],
            "Model": values["model"],
            "Input": f"{rows}, {size} in {shards}, {units}",
            "Reads": ", ".join(self.plan.task.input_columns()),
            "Writes": ", ".join(values["columns"]),
            "Output": values["output"],
            "Done": f"{values['num_units_done']:,} of {units}, {values['num_rows_done']:,} of {rows}",
            "Generation": _lines(values["generation"]),
            "Task options": _lines(values["task_options"]),
            **({"Note": "\n".join(values["notes"])} if values["notes"] else {}),
            **({} if self.forecast is None else _expected(self.forecast)),
            **self.replica.words(),
            "Fingerprint": values["fingerprint"],
        }

    def _left(self) -> tuple[int, int]:
        """Return how many units, and rows, a run would compute."""
        if self.done is None:
            return self.plan.num_units, self.plan.num_rows
        units = [unit.num_rows for one in self.done.pending(self.plan) if one.missing for unit in one.units(self.plan)]
        return len(units), sum(units)


def _expected(forecast: Forecast) -> dict[str, str]:
    """Say what rows that were looked at make for all."""
    looked_at, expected = forecast.num_looked_at, forecast.expected
    kinds = {kind: expected(count) for kind, count in forecast.errors_by_kind.items()}
    told = {
        "Sample": f"{wording.plural(looked_at, 'row')} of spread places, in {wording.duration(forecast.seconds)}",
        "Tokens": f"about {expected(forecast.num_input_tokens):,} in, of which the model is asked "
        f"{expected(forecast.num_asked_tokens):,}; {expected(forecast.num_truncated_tokens):,} truncated",
        "Errors": f"about {sum(kinds.values()):,} rows ({wording.kinds(kinds)})" if kinds else f"none in {looked_at:,}",
    }
    if forecast.num_chosen < looked_at:
        told["Chosen"] = f"about {expected(forecast.num_chosen):,} rows, as {forecast.num_chosen:,} of {looked_at:,}"
    return told


def _done(plan: JobPlan, found: ledger.Found) -> Done | None:
    if plan.config.output.mode == "overwrite":
        return Done(Register.of([]))
    try:
        ownership.refuse_foreign(plan, found)
        return Done.find(plan, found)
    except OutputError:
        return None


def _lines(options: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in options.items() if value is not None)
