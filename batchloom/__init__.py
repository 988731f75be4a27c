"""Batchloom: distributed batch inference for BART, BLOOM and Blenderbot over Parquet in object storage.

`models`, `pipelines` and `jobs` beside this file are links to the folders of the same names at the top of the
repository; docs/log.md says why. Nothing heavy is imported until it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchloom.pipelines import JobConfig, plan, run, verify

_HOME = {
    "JobConfig": "batchloom.pipelines",
    "plan": "batchloom.pipelines",
    "run": "batchloom.pipelines",
    "verify": "batchloom.pipelines",
}

__all__ = ["JobConfig", "plan", "run", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'batchloom' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
