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


ADVICE = {
    "damaged_input": "their bytes in the input do not decode; write those files again",
    "empty_text": "their text is white space alone; leave them out of the input, or choose another column",
    "killed_the_process": "look at their texts; the logs of Ray's workers may say more",
    "no_targets": "give them targets, in the column that task_options.targets_column names",
    "no_labels": "give them labels, in the column that task_options.labels_column names",
    "no_mask": "put the tokenizer's mask into their text",
    "no_tokens": "the tokenizer knows none of their characters; see whether it is the checkpoint's own",
    "not_finite": "the column error says which values, and what to change in another output",
    "not_shrinking": "lower generation.max_new_tokens, or set task_options.merge: join, in another output",
    "not_utf8": "write their text as UTF-8",
    "null_text": "leave them out of the input, or choose another column",
    "out_of_memory": "run again with --retry-errors=out_of_memory on a device with more memory, or lower "
    "generation.num_beams or its lengths in another output",
    "refused_request": "the column error says which parameter or text",
    "too_large": "ask for less of each token, or set task_options.max_length or max_row_bytes, in another output",
    "too_long": "shorten or split their texts, or set task_options.truncation in another output",
    "too_short": "they have too few tokens to score; leave them out of the input",
}
"""What to do about rows with a kind of error, after its name and a colon."""

ERROR_KINDS = frozenset(ADVICE)
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
