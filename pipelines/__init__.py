"""The public door of pipelines: a job's configuration in, an accounted-for dataset out. Only a run imports Ray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.config import JobConfig
    from pipelines.driver import run
    from pipelines.job_plan import JobPlan, plan
    from pipelines.verification import Verification, verify

# No module shares its name with a function of the door: importing a module would put it in the function's place.
_HOME = {
    "JobConfig": "pipelines.config",
    "JobPlan": "pipelines.job_plan",
    "Verification": "pipelines.verification",
    "plan": "pipelines.job_plan",
    "run": "pipelines.driver",
    "verify": "pipelines.verification",
}

__all__ = [
    "JobConfig",
    "JobPlan",
    "Verification",
    "plan",
    "run",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
