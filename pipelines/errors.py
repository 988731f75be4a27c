"""The error tree of pipelines, and the words an error row uses.

PipelineError
├── ConfigError         the job asks for something that is not there or contradicts itself (exit code 2)
│   ├── InputError      no file matches, a file cannot be read, a column is missing or of the wrong type
│   └── OutputError     the output belongs to another job, or holds parts that no input accounts for
├── JobError            the job started and could not go on (exit code 1)
└── ErrorLimitError     more rows failed than limits.max_error_rate allows (exit code 3)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from batchloom.models.errors import ModelError


class PipelineError(Exception):
    """The root: catch it to catch every error that pipelines raises on purpose."""


class ConfigError(PipelineError):
    """The job asks for something that is not there or contradicts itself; nothing was computed."""


class InputError(ConfigError):
    """No file matches, a file cannot be read, or a column is missing or of the wrong type."""


class OutputError(ConfigError):
    """The output folder belongs to another job, or holds parts that no input accounts for."""


class JobError(PipelineError):
    """The job started and could not go on; finished parts stay, and the same command resumes."""


class ErrorLimitError(PipelineError):
    """More rows failed than `limits.max_error_rate` allows; finished parts stay."""


@dataclass(frozen=True)
class RowError:
    """Why one row has no answer: the `error` struct of the output."""

    stage: str
    """Where it happened: read, prepare, infer or finish."""
    kind: str
    """A short constant to group by: null_text, empty_text, too_long, ..."""
    message: str
    """What was found and what to change."""


@contextmanager
def failing_as(what: str) -> Iterator[None]:
    """What goes wrong inside becomes a JobError that says what was going on: on its way through Ray an error keeps its
    message and nothing else."""
    try:
        yield
    except (PipelineError, ModelError):
        raise
    except Exception as error:
        raise JobError(f"{what} failed: {type(error).__name__}: {error}") from error
