"""The Python API: run, plan and verify jobs from scripts and notebooks. It prints progress and nothing else.

A job is the path of a job file, a mapping with a job file's keys, or a JobConfig. Errors are those of the command line,
with the same messages: PipelineError (batchloom/pipelines/errors.py) and ModelError (batchloom/models/errors.py).
"""

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, fields
from typing import Any, TextIO

from batchloom import pipelines
from batchloom.jobs import spec
from batchloom.jobs.terminal.notebook import NotebookLine, is_notebook
from batchloom.jobs.terminal.output import Output
from batchloom.pipelines.config import JobConfig as ResolvedJob
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.ledger.manifest import Manifest
from batchloom.pipelines.ledger.verification import Verification
from batchloom.pipelines.metrics import Event
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.running.driver import ignore
from batchloom.pipelines.watching.progress import Progress

Watcher = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class JobConfig(ResolvedJob):
    """A resolved job: every key of a job file, with its default. The keys are documented in pipelines/config.py."""

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> "JobConfig":
        """Read a job file.

        Raises:
            ConfigError: the file cannot be read or is wrong; the message lists every problem with its line.
        """
        return cls._of(spec.load(os.fspath(path)))

    @classmethod
    def from_dict(cls, job: Mapping[str, Any]) -> "JobConfig":
        """Resolve a mapping with a job file's keys, nested as in the file; paths may be `os.PathLike`.

        Raises:
            ConfigError: keys or values are wrong; the message lists every problem.
        """
        return cls._of(spec.from_mapping(job))

    @classmethod
    def _of(cls, resolved: ResolvedJob) -> "JobConfig":
        return cls(**{field.name: getattr(resolved, field.name) for field in fields(ResolvedJob)})


Job = str | os.PathLike[str] | Mapping[str, Any] | ResolvedJob


def run(
    job: Job,
    progress: bool | None = None,
    on_event: Watcher | None = None,
    retry_errors: bool | str | Sequence[str] = False,
    even_if_running: bool = False,
) -> Manifest:
    """Run a job to its end and return its manifest. A job that was stopped is resumed by the same call.

    Args:
        progress: True shows progress, on stderr or in the notebook's cell; False shows nothing; None shows it in
            notebooks and where stderr is a terminal.
        on_event: called in this thread with every event: Planned, Retrying, ReplicasStarting, Replicas, UnitDone,
            PartDone, UnitFailed, Waiting, ReplicaEnded and Finished of `batchloom.pipelines.metrics`. An exception that
            it raises stops the job; finished parts are kept.
        retry_errors: True computes rows with errors again; a kind of error, or several, those rows alone. Answers stay.
            Options of the job that concern such rows alone may differ from before: see docs/tasks.md.
        even_if_running: run also beside another driver of the same output: nothing is lost, all is computed twice.

    Raises:
        ConfigError: the job is wrong, its input or output do not fit it, or it is running already; nothing was done.
        ModelError: the checkpoint or its tokenizer cannot be used.
        ErrorLimitError: more rows failed, or are degenerate, than `limits` allow; finished parts are kept.
        JobError: the job could not go on; finished parts are kept.
    """
    config = _config_of(job)
    with _shown(progress) as show:

        def watch(event: Event) -> None:
            show(event)
            if on_event is not None:
                on_event(event)

        return pipelines.run(config, watch, _kinds(retry_errors), even_if_running)


def plan(job: Job) -> JobPlan:
    """Return what `run` would do: shards, units, resolved parameters, output columns. Starts and writes nothing.

    Raises:
        ConfigError: the job is wrong, or its input or output do not fit it.
        ModelError: the checkpoint or its tokenizer cannot be used.
    """
    return pipelines.plan(_config_of(job))


def verify(output: Job, storage_options: Mapping[str, Any] | None = None, deep: bool = False) -> Verification:
    """Recount a finished output against its manifest and its input; `.ok` and `.problems` hold the verdict.

    Args:
        output: the output folder (a local path or an fsspec URL), or the job that writes it: a path that ends in .yaml
            or .yml, a mapping or a JobConfig.
        storage_options: arguments for the output's fsspec filesystem; they take precedence over the job's.
        deep: read every byte of every part, as Ray tasks. Otherwise a part is believed that has the size and the
            etag, or modification time, of its record.

    Raises:
        ConfigError: `output` is a job, and it is wrong.
        OutputError: the folder holds no output of Batchloom, or the job is not finished.
    """
    check = pipelines.deep_check if deep else None
    if isinstance(output, str | os.PathLike) and not os.fspath(output).endswith((".yaml", ".yml")):
        return pipelines.verify(os.fspath(output), storage_options or {}, deep=check)
    job = _config_of(output)
    options = {**job.output.storage_options, **(storage_options or {})}
    return pipelines.verify(job.output.path, options, job.input, check)


def _kinds(retry_errors: bool | str | Sequence[str]) -> Collection[str] | None:
    """Return the kinds of errors to retry, of which an empty collection stands for all, or None for no retry."""
    match retry_errors:
        case bool():
            return () if retry_errors else None
        case str():
            return (retry_errors,)
    return retry_errors or None  # an empty list names no error


def _config_of(job: Job) -> ResolvedJob:
    match job:
        case ResolvedJob():
            return JobConfig.from_dict(asdict(job))  # a dataclass does not check its fields' types
        case str() | os.PathLike():
            return JobConfig.from_yaml(job)
        case Mapping():
            return JobConfig.from_dict(job)
    raise ConfigError(
        f"A job is the path of a job file, a mapping with its keys or a JobConfig; found {type(job).__name__}."
    )


@contextmanager
def _shown(progress: bool | None) -> Iterator[Watcher]:
    """Yield a watcher that shows progress where it is wanted. What the caller prints still goes to its stdout."""
    stdout = sys.stdout
    if progress is not False and is_notebook():
        yield NotebookLine(Progress())
    elif progress or (progress is None and _is_terminal(sys.stderr)):
        # Where both are terminals, rich prints the caller's lines above the live line; redirected, they would break it.
        is_live = _is_terminal(sys.stderr) and _is_terminal(stdout)
        with Output().watching() as show, nullcontext() if is_live else redirect_stdout(stdout):
            yield show
    else:
        yield ignore


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()
