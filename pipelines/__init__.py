"""The public API of pipelines: run, plan and verify a JobConfig. Names are imported lazily; only `run` imports Ray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchloom.pipelines.config import JobConfig
    from batchloom.pipelines.ledger.verification import Verification, verify
    from batchloom.pipelines.planning.job_plan import JobPlan
    from batchloom.pipelines.planning.planner import plan
    from batchloom.pipelines.running.deep import deep_check
    from batchloom.pipelines.running.driver import run

# No module may be named like a public function: importing it would replace the function in this namespace.
_HOME = {
    "JobConfig": "batchloom.pipelines.config",
    "JobPlan": "batchloom.pipelines.planning.job_plan",
    "Verification": "batchloom.pipelines.ledger.verification",
    "deep_check": "batchloom.pipelines.running.deep",
    "plan": "batchloom.pipelines.planning.planner",
    "run": "batchloom.pipelines.running.driver",
    "verify": "batchloom.pipelines.ledger.verification",
}

__all__ = [
    "JobConfig",
    "JobPlan",
    "Verification",
    "deep_check",
    "plan",
    "run",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'batchloom.pipelines' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
