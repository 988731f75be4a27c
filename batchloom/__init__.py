"""Batchloom: distributed batch inference for BART, BLOOM and Blenderbot over Parquet in object storage.

    manifest = batchloom.run("job.yaml")            # or a mapping with a job file's keys, or a JobConfig
    assert batchloom.verify(manifest.job["output"]["path"]).ok

Errors that a caller can act on are PipelineErrors (the job, its input, its output) and ModelErrors (the checkpoint).
Names are imported lazily: `import batchloom` loads neither torch nor ray. In a checkout `models`, `pipelines` and
`jobs` beside this file are links to the folders of the same names at the top of the repository; docs/log.md says why.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchloom.jobs.api import JobConfig, plan, run, verify
    from batchloom.models.errors import ModelError
    from batchloom.pipelines.errors import PipelineError

    __version__: str

_HOME = {
    "JobConfig": "batchloom.jobs.api",
    "ModelError": "batchloom.models.errors",
    "PipelineError": "batchloom.pipelines.errors",
    "plan": "batchloom.jobs.api",
    "run": "batchloom.jobs.api",
    "verify": "batchloom.jobs.api",
}

__all__ = ["JobConfig", "ModelError", "PipelineError", "__version__", "plan", "run", "verify"]


if not TYPE_CHECKING:  # type checkers would take every name for one of this package

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return import_module("importlib.metadata").version("batchloom")
        if name not in _HOME:
            raise AttributeError(f"module 'batchloom' has no attribute {name!r}")
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
