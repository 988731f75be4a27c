"""The machine that an estimate is of: the GPU that is here, one that was named, or one that has to be assumed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from batchloom.jobs.reports import wording
from batchloom.models import MACHINES, Machine
from batchloom.models.machines import gpus_here, machine_named
from batchloom.pipelines.errors import ConfigError


@dataclass(frozen=True)
class Assumption:
    """A machine, and why it is this one."""

    machine: Machine = Machine()  # noqa: RUF009
    reason: str = "named by nobody"

    @staticmethod
    def of(gpu: str | None, figures: Mapping[str, float]) -> "Assumption":
        """Return the machine that is `gpu`, else the one that is here. `figures` are told, in place of its own.

        Raises: ConfigError where no figures are known of `gpu`.
        """
        if gpu is not None and gpu.lower() not in MACHINES:
            known = ", ".join(MACHINES)
            raise ConfigError(f"--gpu: no figures of {gpu!r} are known. Use one of {known}, or give them: --memory ...")
        found = _found() if gpu is None else Assumption(MACHINES[gpu.lower()], "as --gpu says")
        if not figures:
            return found
        told = ", ".join(f"--{name.replace('_', '-')}" for name in figures)
        machine = replace(found.machine, **dict[str, Any](figures))
        return Assumption(machine, f"{found.reason}; {told} as told")

    def words(self, dtype: str) -> str:
        """Return the machine, the figures that estimates in `dtype` use, and why."""
        machine, metric = self.machine, wording.metric
        flops = machine.float_flops if dtype == "float32" else machine.half_flops
        figures = (
            f"{metric(machine.memory, 'B')}, {metric(machine.bandwidth, 'B/s')}, {metric(flops, 'FLOP/s')} in {dtype}"
        )
        return f"{machine.name} a rank ({figures}: peak figures of its maker), {self.reason}"


def _found() -> Assumption:
    here = gpus_here()
    if not here:
        return Assumption(reason="assumed, as this machine has no GPU: --gpu names another")
    machine = machine_named(here[0])
    if machine is None:
        return Assumption(reason=f"assumed, as no figures of {here[0]}, which is here, are known: --gpu, --memory, ...")
    return Assumption(machine, "the GPU of this machine")
