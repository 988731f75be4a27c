"""What is around every command: an Output, and errors that become messages and exit codes."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import typer

from batchloom.jobs import signals
from batchloom.jobs.exit_codes import ExitCode
from batchloom.models.errors import ModelError
from batchloom.pipelines.errors import ConfigError, ErrorLimitError, JobError, PipelineError

if TYPE_CHECKING:
    from batchloom.jobs.terminal.output import Output


@contextmanager
def command(as_json: bool) -> Iterator["Output"]:
    """Yield an Output; turn known errors into messages and exit codes. Unexpected ones keep their traceback."""
    from batchloom.jobs.terminal.output import Output

    output = Output(as_json)
    try:
        with signals.handled(), output.noting_logs():
            yield output
    except (PipelineError, ModelError) as error:
        code = exit_code(error)
        output.error(error, code)
        raise typer.Exit(code) from None
    except OSError as error:  # of a disk or a network, where no caller had more to say
        output.error(JobError(f"{type(error).__name__}: {error}"), ExitCode.FAILED)
        raise typer.Exit(ExitCode.FAILED) from None
    except KeyboardInterrupt as error:
        stop = error if isinstance(error, signals.Stop) else signals.Stop(ExitCode.INTERRUPTED)
        with suppress(OSError):  # the terminal may be closed
            output.note(f"\n{stop}")
        raise typer.Exit(stop.code) from None


def exit_code(error: PipelineError | ModelError) -> ExitCode:
    match error:
        case ConfigError() | ModelError():
            return ExitCode.WRONG_JOB
        case ErrorLimitError():
            return ExitCode.ERROR_LIMIT
    return ExitCode.FAILED
