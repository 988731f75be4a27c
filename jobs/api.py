"""The Python API: run, plan and verify a job from a script or a notebook. It prints nothing but progress.

A job is a path of a job file, a mapping with a job file's keys, or a JobConfig. Problems of a mapping come all at once
in the words of a job file's, as ConfigError.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields
from typing import Any

from batchloom import pipelines
from batchloom.jobs import spec
from batchloom.jobs.terminal.output import Output
from batchloom.jobs.terminal.progress import Progress
from batchloom.pipelines.config import JobConfig as ResolvedJob
from batchloom.pipelines.driver import ignore
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.ledger.verification import Verification
from batchloom.pipelines.metrics import Event, Manifest
from batchloom.pipelines.planning.job_plan import JobPlan

Watcher = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class JobConfig(ResolvedJob):
    """A job as resolved, with every key of a job file and its default; see `batchloom.pipelines.JobConfig`."""

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> "JobConfig":
        """Read a job file. Raises: ConfigError that names every problem of the file with its line."""
        return cls._of(spec.load(os.fspath(path)))

    @classmethod
    def from_dict(cls, job: Mapping[str, Any]) -> "JobConfig":
        """Resolve a mapping with a job file's keys. Raises: ConfigError that names every problem of the mapping."""
        return cls._of(spec.from_mapping(job))

    @classmethod
    def _of(cls, resolved: ResolvedJob) -> "JobConfig":
        return cls(**{field.name: getattr(resolved, field.name) for field in fields(ResolvedJob)})


Job = str | os.PathLike[str] | Mapping[str, Any] | ResolvedJob


def run(job: Job, progress: bool | None = None, on_event: Watcher | None = None) -> Manifest:
    """Do what is left of a job and close it; the same call resumes a job that was stopped.

    `progress`: True shows how far the job is on stderr or in the notebook's cell, False shows nothing, None shows it
    on terminals and in notebooks. `on_event` is called with every event of `batchloom.pipelines.metrics`.
    Raises: ConfigError or ModelError before anything is computed; ErrorLimitError or JobError afterwards, with
    finished parts kept.
    """
    config = _config_of(job)
    with _shown(progress) as show:

        def watch(event: Event) -> None:
            show(event)
            if on_event is not None:
                on_event(event)

        return pipelines.run(config, watch)


def plan(job: Job) -> JobPlan:
    """Return all that `run` would do; nothing is started. Raises: ConfigError or ModelError for what cannot work."""
    return pipelines.plan(_config_of(job))


def verify(output: Job, storage_options: Mapping[str, Any] | None = None) -> Verification:
    """Recount a finished output against its manifest and its input.

    `output` is the output folder, or the job that writes it; `storage_options` open the folder where it needs any.
    Raises: OutputError where there is nothing to verify.
    """
    if isinstance(output, str | os.PathLike) and not os.fspath(output).endswith((".yaml", ".yml")):
        return pipelines.verify(os.fspath(output), storage_options or {})
    written = _config_of(output).output
    return pipelines.verify(written.path, {**written.storage_options, **(storage_options or {})})


def _config_of(job: Job) -> ResolvedJob:
    match job:
        case ResolvedJob():
            return job
        case str() | os.PathLike():
            return JobConfig.from_yaml(job)
        case Mapping():
            return JobConfig.from_dict(job)
    raise ConfigError(
        f"A job is the path of a job file, a mapping with its keys or a JobConfig; found {type(job).__name__}."
    )


@contextmanager
def _shown(progress: bool | None) -> Iterator[Watcher]:
    """Yield a watcher that shows progress where it is wanted. A caller's own prints still go to its stdout."""
    from batchloom.jobs.terminal.notebook import NotebookLine, is_notebook

    stdout = sys.stdout
    if is_notebook() and progress is not False:
        yield NotebookLine(Progress())
    elif progress or (progress is None and sys.stderr.isatty()):
        with Output().watching() as show, redirect_stdout(stdout):
            yield show
    else:
        yield ignore
