"""What a job would do: rows, units, what is done already, parameters, a replica's memory and speed.

It starts nothing, unless a probe is asked for, and writes nothing that stays.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from batchloom import pipelines
from batchloom.jobs.reports import expectation, wording
from batchloom.jobs.reports.assumption import Assumption
from batchloom.jobs.reports.replica_estimate import ReplicaEstimate
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import OutputError
from batchloom.pipelines.ledger import ledger, ownership
from batchloom.pipelines.ledger.register import Register
from batchloom.pipelines.ledger.resume import Done
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.stores.permission import check_writable

if TYPE_CHECKING:
    from batchloom.pipelines.forecasting.forecast import Forecast
    from batchloom.pipelines.forecasting.rehearsal import Rehearsal
    from batchloom.pipelines.forecasting.sample import Sample

SAMPLED_ROWS = 5000  # where a probe is asked for, and nobody says how many


@dataclass(frozen=True)
class Looks:
    """What a dry run looks at beside the plan."""

    num_sampled: int = 0
    """Rows that are read and tokenized."""
    is_probed: bool = False
    """One replica is started, and computes some of them."""
    price: float | None = None
    """Of an hour of one replica."""


@dataclass(frozen=True)
class DryRun:
    """A job's plan and the state of its output."""

    plan: JobPlan
    found: ledger.Found
    replica: ReplicaEstimate
    done: Done | None
    """What is there of the job; None where `run` would refuse the output."""
    unwritable: OutputError | None = None
    """Why a run could not write what is left."""
    forecast: "Forecast | None" = None
    """None where no rows were to be read."""
    rehearsal: "Rehearsal | None" = None
    price: float | None = None

    @staticmethod
    def of(
        config: JobConfig, assumption: Assumption, num_tokens: int | None = None, looks: Looks = Looks()
    ) -> "DryRun":
        """Plan the job. Raises: ConfigError or ModelError where the job cannot run; JobError where a probe fails."""
        plan = pipelines.plan(config)
        found = ledger.look(plan.output)
        done = _done(plan, found)
        dry_run = DryRun(plan, found, ReplicaEstimate(plan, assumption, num_tokens), done, price=looks.price)
        dry_run = replace(dry_run, unwritable=dry_run._unwritable())
        if not looks.num_sampled and not looks.is_probed:
            return dry_run
        from batchloom.pipelines.forecasting.forecast import Forecast
        from batchloom.pipelines.forecasting.sample import Sample

        dry_run.refuse()  # before anything takes minutes
        sample = Sample.of(plan, looks.num_sampled or SAMPLED_ROWS)
        forecast = Forecast.of(plan, sample)
        rehearsal = dry_run._rehearsed(sample, forecast) if looks.is_probed else None
        return replace(dry_run, forecast=forecast, rehearsal=rehearsal)

    def _rehearsed(self, sample: "Sample", forecast: "Forecast") -> "Rehearsal":
        from batchloom.pipelines.forecasting.rehearsing import rehearse

        num_units, num_rows = self._left
        return rehearse(self.plan, sample, forecast.chosen.total * num_rows / self.plan.num_rows, num_units)

    def _unwritable(self) -> OutputError | None:
        """Return why the output cannot be written, where something is left to write."""
        if self.done is None or not self._left[1]:
            return None
        try:
            check_writable(self.plan.output)
        except OutputError as error:
            return error
        return None

    def refuse(self) -> None:
        """Do nothing where `run` would accept the output. Raises: OutputError where it would refuse it, or fail."""
        if self.done is None:
            ownership.refuse_foreign(self.plan, self.found)
            Done.find(self.plan, self.found)
        if self.unwritable is not None:
            raise self.unwritable

    def values(self) -> dict[str, Any]:
        plan, (num_units_left, num_rows_left) = self.plan, self._left
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
            "is_writable": self.unwritable is None,
            "forecast": None if self.forecast is None else asdict(self.forecast),
            "rehearsal": self.rehearsal and expectation.rehearsal_values(self.rehearsal, self.price),
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
            **({"Generation": _lines(values["generation"])} if values["generation"] else {}),
            "Task options": _lines(
                {name: value for name, value in values["task_options"].items() if value is not None}
            ),
            **({"Note": "\n".join(values["notes"])} if values["notes"] else {}),
            **self._expected(),
            **self.replica.words(),
            "Fingerprint": values["fingerprint"],
        }

    def _expected(self) -> dict[str, str]:
        if self.forecast is None:
            return {}
        told = expectation.forecast_words(self.forecast, self.rehearsal)
        if self.rehearsal is None:
            return told
        return told | expectation.rehearsal_words(self.forecast, self.rehearsal, self.price)

    @cached_property
    def _left(self) -> tuple[int, int]:
        """Return how many units, and rows, a run would compute."""
        if self.done is None:
            return self.plan.num_units, self.plan.num_rows
        units = [unit.num_rows for one in self.done.pending(self.plan) if one.missing for unit in one.units(self.plan)]
        return len(units), sum(units)


def _done(plan: JobPlan, found: ledger.Found) -> Done | None:
    if plan.config.output.mode == "overwrite":
        return Done(Register.of([]))
    try:
        ownership.refuse_foreign(plan, found)
        return Done.find(plan, found)
    except OutputError:
        return None


def _lines(options: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in options.items())
