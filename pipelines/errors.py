"""The error tree of pipelines, and the error of a row.

PipelineError
├── ConfigError         the job asks for something that is not there or contradicts itself (exit code 2)
│   ├── InputError      a file cannot be read, a column is missing or of the wrong type
│   │   └── NoInputError    no file matches
│   └── OutputError     the output cannot be written, belongs to another job, or is not what was asked for
├── JobError            the job started and could not go on (exit code 1)
│   └── StoreError      a store could not be read or written, however often it was tried
└── ErrorLimitError     more rows failed, or more answers are degenerate, than limits allow (exit code 3)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from batchloom.models.errors import ModelError
from batchloom.models.redaction import redacted
from batchloom.models.trouble import Trouble


class PipelineError(Exception):
    """The base class of every error that pipelines raises deliberately. Its message shows no credentials of URLs."""

    def __str__(self) -> str:
        return redacted(super().__str__())


class ConfigError(PipelineError):
    """The job asks for something that is not there or contradicts itself; nothing was computed."""


class InputError(ConfigError):
    """No file matches, a file cannot be read, or a column is missing or of the wrong type."""


class NoInputError(InputError):
    """A path of the input matches no file."""


class OutputError(ConfigError):
    """The output folder cannot be written, belongs to another job, or holds no (finished) output to verify."""


class JobError(PipelineError):
    """The job started and could not go on; finished parts are kept, and the same command resumes."""


class StoreError(JobError):
    """A store could not be read or written, however often it was tried."""

    def __init__(self, message: str, trouble: Trouble = Trouble.LASTING) -> None:
        super().__init__(message)
        self.trouble = trouble


class ErrorLimitError(PipelineError):
    """More rows failed than `limits.max_error_rate` allows, or more answers are degenerate than
    `limits.max_degenerate_rate` does; finished parts are kept."""


ERROR_KINDS = frozenset(
    {
        "damaged_input",
        "empty_text",
        "killed_the_process",
        "no_labels",
        "no_mask",
        "no_tokens",
        "not_finite",
        "not_shrinking",
        "not_utf8",
        "null_text",
        "out_of_memory",
        "refused_request",
        "too_long",
        "too_short",
    }
)
"""What a row's error can be. `--retry-errors` takes these; tests hold that no other is made."""


@dataclass(frozen=True)
class RowError:
    """Why one row has no answer: the `error` struct of the output."""

    stage: str
    """Where it happened: read, prepare, infer or finish."""
    kind: str
    """A constant to group by: null_text, empty_text, too_long, ..."""
    message: str
    """What was found, and what to change. It shows no credentials of URLs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", redacted(self.message))


@contextmanager
def failing_as(what: str, *passed: type[Exception]) -> Iterator[None]:
    """Turn unknown errors of the `with` block into a JobError that names the activity: Ray delivers only messages.

    Raises:
        JobError: in place of anything but a PipelineError, a ModelError, or one of `passed`.
    """
    try:
        yield
    except (PipelineError, ModelError):
        raise
    except passed:
        raise
    except Exception as error:
        raise JobError(f"{what} failed: {type(error).__name__}: {error}") from error
