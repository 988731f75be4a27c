"""The `batchloom` command: its commands, and how its process ends. Commands print through Output only."""

import atexit
import gc
import io
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Annotated

import typer

from batchloom.jobs import signals
from batchloom.jobs.cli import authoring, clusters, outputs, running
from batchloom.jobs.cli.options import BareKinds

# New objects between two looks for cycles. Python's 700 cost a short command a tenth of its time, and 50,000 two looks
# of 17 ms each at what a plan had imported, 114,000 objects.
GARBAGE = 200_000

# Ray, torch, pyarrow and pydantic take seconds to import. Each command imports what it needs, so --help is fast.
app = typer.Typer(
    name="batchloom",
    help="Batch inference for BART, BLOOM and Blenderbot over Parquet: one job file, from a laptop to a cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from batchloom.jobs.terminal.output import Output

        Output().say(f"batchloom {version('batchloom')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    pass


COMMANDS: tuple[Callable[..., None], ...] = (
    *(running.run, running.plan, authoring.init, authoring.schema, authoring.inspect),
    *(clusters.submit, clusters.jobs, clusters.logs, clusters.attach, clusters.stop),
    *(outputs.verify, outputs.show, outputs.status, outputs.report),
)
for command in COMMANDS:
    app.command(cls=BareKinds)(command)


def main() -> None:
    """Run the command line, and end the process with one of ExitCode."""
    gc.set_threshold(GARBAGE)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # LANG=C has no é
    sys.excepthook = _tell_unexpected
    handler = signals.Handler()
    signals.install(handler)
    try:
        with handler.ending():
            app()
    except signals.Stop as stop:  # also where it came before the command began
        signals.end_process(stop.code)
    except SystemExit as done:
        handler.is_over = True
        atexit._run_exitfuncs()
        signals.end_process(done.code if isinstance(done.code, int) else int(done.code is not None))
    finally:
        handler.is_over = True


def _tell_unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error that nobody expected, by the rules of all that is printed."""
    import traceback

    from batchloom.jobs.terminal.output import Output

    Output().relay("".join(traceback.format_exception(kind, error, trace)))
