"""The `batchloom` command: parse the command line and call what does the work. It prints through Output only."""

import atexit
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from batchloom.jobs import signals
from batchloom.jobs.exit_codes import ExitCode
from batchloom.models.errors import ModelError
from batchloom.models.footprint import Machine
from batchloom.pipelines.errors import ConfigError, ErrorLimitError, JobError, PipelineError

# Ray, torch, pyarrow and pydantic take seconds to import. Each command imports what it needs, so --help is fast.
if TYPE_CHECKING:
    from batchloom.jobs.remote.ray_job import RayJob
    from batchloom.jobs.reports.view import View
    from batchloom.jobs.terminal.output import Output
    from batchloom.pipelines.config import JobConfig

app = typer.Typer(
    name="batchloom",
    help="Batch inference for BART, BLOOM and Blenderbot over Parquet: one job file, from a laptop to a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobFile = Annotated[str | None, typer.Argument(metavar="JOB.YAML", help="The job file.", show_default=False)]
Folder = Annotated[str, typer.Argument(metavar="OUTPUT", help="An output folder, or the job file that names it.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the job: generation.num_beams=1. Repeatable."),
]
Task = Annotated[str | None, typer.Option("--task", help="Instead of the job file's task.")]
Model = Annotated[str | None, typer.Option("--model", help="Path, fsspec URL or hf://org/name@revision.")]
Input = Annotated[list[str] | None, typer.Option("--input", metavar="PATH", help="File, folder or glob. Repeatable.")]
Target = Annotated[str | None, typer.Option("--output", metavar="PATH", help="The output folder.")]
TextColumn = Annotated[str | None, typer.Option("--text-column", metavar="COLUMN", help="The column to read.")]
KeepColumns = Annotated[str | None, typer.Option("--keep-columns", metavar="A,B,...", help="The columns to copy.")]
Limit = Annotated[
    int | None,
    typer.Option(metavar="ROWS", min=1, help="Try the job on so many rows, with an output beside its own."),
]
RetryErrors = Annotated[
    str | None,
    typer.Option("--retry-errors", metavar="[=KIND,...]", help="Compute rows with errors again: all, or these kinds."),
]
Address = Annotated[str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The Ray dashboard: HOST, or HOST:PORT.")]
RayJobId = Annotated[str, typer.Argument(metavar="JOB", help="The id that submit told; `batchloom jobs` lists them.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines.")]


def _machine(help_text: str) -> Any:
    return typer.Option(help=help_text, min=1, rich_help_panel="What estimates assume: an H100 of a node of eight")


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


def main() -> None:
    """Run the command line, and end the process with one of ExitCode."""
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


class BareKinds(TyperCommand):
    """Takes --retry-errors and --errors without kinds, too: typer has no options whose value can be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f"{arg}=" if arg in ("--retry-errors", "--errors") else arg for arg in args])


def _tell_unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error that nobody expected, by the rules of all that is printed."""
    import traceback

    from batchloom.jobs.terminal.output import Output

    Output().relay("".join(traceback.format_exception(kind, error, trace)))


@app.command(cls=BareKinds)
def run(
    job: JobFile = None,
    sets: Sets = None,
    task: Task = None,
    model: Model = None,
    inputs: Input = None,
    output_path: Target = None,
    text_column: TextColumn = None,
    keep_columns: KeepColumns = None,
    limit: Limit = None,
    retry_errors: RetryErrors = None,
    even_if_running: Annotated[
        bool, typer.Option("--even-if-running", help="Run also beside another driver of the same output.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a job to its end; the same command resumes it after a stop."""
    flags = _flags(task, model, inputs, output_path, text_column, keep_columns, limit)
    with _command(as_json) as output:
        from batchloom import pipelines

        config = _load(job, sets, flags)
        with output.watching() as watcher:
            manifest = pipelines.run(config, watcher, _names(retry_errors), even_if_running)
        output.finished(manifest, config.output.path)


@app.command()
def plan(
    job: JobFile = None,
    sets: Sets = None,
    task: Task = None,
    model: Model = None,
    inputs: Input = None,
    output_path: Target = None,
    text_column: TextColumn = None,
    keep_columns: KeepColumns = None,
    limit: Limit = None,
    sample: Annotated[
        int, typer.Option(metavar="ROWS", min=1, help="Read so many rows: tokens, truncations and errors to expect.")
    ] = 0,
    as_json: Json = False,
    memory: Annotated[float, _machine("Of a device, in GB.")] = Machine.memory / 1e9,
    bandwidth: Annotated[float, _machine("Between a device and its memory, in GB/s.")] = Machine.bandwidth / 1e9,
    half_flops: Annotated[float, _machine("In float16 and bfloat16, in TFLOP/s.")] = Machine.half_flops / 1e12,
    float_flops: Annotated[float, _machine("In float32, in TFLOP/s.")] = Machine.float_flops / 1e12,
    link: Annotated[float, _machine("Between devices, each way, in GB/s.")] = Machine.link / 1e9,
    storage: Annotated[float, _machine("From storage to all ranks together, in GB/s.")] = Machine.storage / 1e9,
    tokens: Annotated[int, _machine("That a sequence looks back at, its source included.")] = 1024,
) -> None:
    """Show what `run` would do, without doing it."""
    flags = _flags(task, model, inputs, output_path, text_column, keep_columns, limit)
    with _command(as_json) as output:
        from batchloom.jobs.reports.dry_run import DryRun

        machine = Machine(
            memory=memory * 1e9,
            bandwidth=bandwidth * 1e9,
            half_flops=half_flops * 1e12,
            float_flops=float_flops * 1e12,
            link=link * 1e9,
            storage=storage * 1e9,
        )
        dry_run = DryRun.of(_load(job, sets, flags), machine, tokens, sample)
        output.result(dry_run.values())
        output.pairs(dry_run.words())
        dry_run.refuse()


@app.command()
def init(
    task: Annotated[str, typer.Argument(metavar="TASK", help="summarization, zero-shot-classification, ...")],
) -> None:
    """Print a job file for a task, with every key, its default and its meaning."""
    with _command(as_json=False) as output:
        from batchloom.jobs import job_guide

        output.say(*job_guide.template(task).splitlines())


@app.command()
def schema() -> None:
    """Print the JSON Schema of job files, for editors."""
    with _command(as_json=False) as output:
        import json

        from batchloom.jobs import job_guide

        output.say(json.dumps(job_guide.schema(), indent=1))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Path, fsspec URL or hf://org/name@revision.")],
    as_json: Json = False,
) -> None:
    """Show what a checkpoint is: classes, labels, lengths, defaults, memory. Its weights are not loaded."""
    with _command(as_json) as output:
        from batchloom.jobs.reports.inspection import Inspection

        found = Inspection.of(model)
        output.result(found.values())
        output.pairs(found.words())


@app.command()
def submit(
    job: Annotated[str, typer.Argument(metavar="JOB.YAML", help="The job file.")],
    address: Address,
    sets: Sets = None,
    wait: Annotated[bool, typer.Option(help="Stay, show the job's log and end with its exit code.")] = True,
    ship: Annotated[
        bool, typer.Option("--ship", help="Send this version of batchloom and its packages: the nodes have none.")
    ] = False,
    variables: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME", help="Pass this variable of the environment. Repeatable."),
    ] = None,
    driver_cpus: Annotated[float | None, typer.Option(min=0, help="CPUs that Ray reserves for the driver.")] = None,
    driver_memory: Annotated[
        float | None, typer.Option(metavar="GB", min=0, help="Memory that Ray reserves for the driver.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a job on a Ray cluster."""
    with _command(as_json) as output:
        from batchloom.jobs.remote import dashboard
        from batchloom.jobs.remote.submission import Deployment, absolute, variables_of
        from batchloom.jobs.remote.submission import submit as start

        config, local = absolute(_load(job, sets, {}))
        memory = None if driver_memory is None else int(driver_memory * 1e9)
        deployment = Deployment(ship, variables_of(variables or []), driver_cpus, memory)
        if local:
            output.note("\n  ".join(["The cluster must see these paths as this machine does:", *local]))
        started = start(config, dashboard.url_of(address), deployment)
        output.result({"event": "submitted", "job": started.id, "address": started.address})
        output.say(f"Submitted {started.id}")
        if wait:
            _follow(started, output)
        where = f"{started.id} --address {started.address}"
        output.say(f"Follow it: batchloom attach {where}", f"Stop it:   batchloom stop {where}")


@app.command()
def jobs(address: Address, as_json: Json = False) -> None:
    """List the jobs that were submitted to a cluster, newest first."""
    with _command(as_json) as output:
        from dataclasses import asdict

        from batchloom.jobs.remote import dashboard
        from batchloom.jobs.remote.ray_job import jobs_of

        found = jobs_of(dashboard.url_of(address))
        for one in found:
            output.result({"event": "job", **asdict(one)})
        if found:
            rows = [one.words() for one in found]
            output.rows(rows, list(rows[0]))
        else:
            output.say("No job was submitted there by batchloom.")


@app.command()
def logs(job: RayJobId, address: Address) -> None:
    """Print the log of a submitted job as far as it is."""
    with _command(as_json=False) as output:
        output.say(*_ray_job(job, address).log().splitlines())


@app.command()
def attach(job: RayJobId, address: Address, as_json: Json = False) -> None:
    """Follow a submitted job's log, and end with its exit code."""
    with _command(as_json) as output:
        _follow(_ray_job(job, address), output)


@app.command()
def stop(job: RayJobId, address: Address, as_json: Json = False) -> None:
    """Stop a submitted job. What is finished stays, and the same job submitted again goes on from there."""
    with _command(as_json) as output:
        code = _ray_job(job, address).stop()
        output.result({"event": "ended", "job": job, "exit_code": int(code), "meaning": code.meaning})
        output.say(f"{job} ended with exit code {int(code)}: {code.meaning}")


@app.command()
def verify(
    folder: Folder,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every byte of every part, as Ray tasks; else sizes and versions tell.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Recount inputs and parts against the manifest: is every row there once, as it was written?"""
    with _command(as_json) as output:
        from dataclasses import asdict

        from batchloom import pipelines

        path, options, job = _address(folder)
        check = pipelines.deep_check if deep else None
        with output.relaying():
            found = pipelines.verify(path, options, job.input if job else None, check)
        output.result({"ok": found.ok, **asdict(found)})
        output.verified(found)
        raise typer.Exit(ExitCode.OK if found.ok else ExitCode.FAILED)


@app.command(cls=BareKinds)
def show(
    folder: Folder,
    rows: Annotated[int, typer.Option("--rows", "-n", min=0, help="How many rows.")] = 10,
    columns: Annotated[str | None, typer.Option(metavar="A,B,...", help="Only these columns.")] = None,
    where: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help='The first rows for which it is true: "id = 7".')
    ] = None,
    errors: Annotated[
        str | None, typer.Option("--errors", metavar="[=KIND,...]", help="Rows with errors: all, or these kinds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show some rows of an output, its totals and its errors, also while the job runs."""
    with _command(as_json) as output:
        from batchloom.jobs.reports.view import chosen_columns
        from batchloom.pipelines.selection.words import WhereError

        view, kinds = _look(folder), _names(errors)
        conditions = [] if where is None else [where if kinds is None else f"({where})"]
        if kinds is not None:
            of_kinds = ", ".join("'" + kind.replace("'", "''") + "'" for kind in kinds)
            conditions.append(f"error.kind in ({of_kinds})" if kinds else "error is not null")
        try:
            sample = view.matching(" and ".join(conditions), rows, kinds) if conditions else view.sample(rows)
        except WhereError as error:
            raise ConfigError(str(error).replace("input.where", "--where", 1)) from None
        chosen = chosen_columns(sample, _names(columns))
        told = [{name: row.get(name) for name in chosen} for row in sample] if columns is not None else sample
        output.result({"totals": view.totals, "errors_by_kind": view.errors_by_kind}, rows=told)
        output.rows(sample, chosen)
        output.view(view)


@app.command()
def status(folder: Folder, as_json: Json = False) -> None:
    """Show how far a job is, from its output alone."""
    with _command(as_json) as output:
        from batchloom.jobs.reports.status import Status

        found = Status.of(_look(folder), _address(folder)[2])
        output.result(found.values())
        output.pairs(found.words())


@app.command()
def report(
    folder: Folder,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write a page of its own instead.")] = None,
    as_json: Json = False,
) -> None:
    """Report on an output: rows, speed, padding, errors, lengths, samples."""
    with _command(as_json) as output:
        from batchloom.jobs.reports.report import Report

        found = Report.of(_look(folder))
        output.result(found.values())
        if html is None:
            output.pairs(found.words())
        else:
            from batchloom.jobs.reports import report_page

            report_page.write(found, html)
            output.say(f"Report: {html}")


# ----------------------------------------------------------------------------------------- what the commands share


@contextmanager
def _command(as_json: bool) -> Iterator["Output"]:
    """Yield an Output; turn known errors into messages and exit codes. Unexpected ones keep their traceback."""
    from batchloom.jobs.terminal.output import Output

    output = Output(as_json)
    try:
        with signals.handled(), output.noting_logs():
            yield output
    except (PipelineError, ModelError) as error:
        code = _exit_code(error)
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


def _ray_job(job: str, address: str) -> "RayJob":
    from batchloom.jobs.remote import dashboard
    from batchloom.jobs.remote.ray_job import RayJob

    return RayJob.find(job, dashboard.url_of(address))


def _follow(job: "RayJob", output: "Output") -> NoReturn:
    with _still_running(job):
        code = job.follow(output.relay)
    output.result({"event": "ended", "job": job.id, "exit_code": int(code), "meaning": code.meaning})
    output.say(f"{job.id} ended with exit code {int(code)}: {code.meaning}")
    raise typer.Exit(code)


@contextmanager
def _still_running(job: "RayJob") -> Iterator[None]:
    """Make an interrupt end the watching of a submitted job, and not the job."""
    try:
        with signals.handled():
            yield
    except signals.Stop as stop:
        where = f"{job.id} --address {job.address}"
        words = f"{job.id} goes on. To follow it: batchloom attach {where}. To stop it: batchloom stop {where}"
        raise signals.Stop(stop.code, words) from None


def _exit_code(error: PipelineError | ModelError) -> ExitCode:
    match error:
        case ConfigError() | ModelError():
            return ExitCode.WRONG_JOB
        case ErrorLimitError():
            return ExitCode.ERROR_LIMIT
    return ExitCode.FAILED


def _flags(
    task: str | None,
    model: str | None,
    inputs: list[str] | None,
    output: str | None,
    text_column: str | None,
    keep_columns: str | None,
    limit: int | None,
) -> dict[str, object]:
    """Return the options that were given, by name."""
    given = {
        "--task": task,
        "--model": model,
        "--input": inputs or None,
        "--output": output,
        "--text-column": text_column,
        "--keep-columns": _names(keep_columns),
        "--limit": limit,
    }
    return {name: value for name, value in given.items() if value is not None}


def _names(text: str | None) -> list[str] | None:
    """Split `id, url` into a list; an empty text is an empty list, and None, an absent option, stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _load(job: str | None, sets: list[str] | None, flags: dict[str, object]) -> "JobConfig":
    from batchloom.jobs import spec
    from batchloom.jobs.job_schema import FLAGS

    overrides = [spec.Override(FLAGS[name], value, name) for name, value in flags.items()]
    config = spec.load(job, [*overrides, *(spec.parse_set(text) for text in sets or [])])
    return spec.as_trial(config) if "--limit" in flags else config


def _address(folder: str) -> "tuple[str, dict[str, object], JobConfig | None]":
    """Return an output folder, its filesystem's options, and the job where a job file is given, which names both."""
    from batchloom.pipelines.stores.storage import absolute

    if not folder.endswith((".yaml", ".yml")):
        return absolute(folder), {}, None
    job = _load(folder, None, {})
    return absolute(job.output.path), dict(job.output.storage_options), job


def _look(folder: str) -> "View":
    from batchloom.jobs.reports import view

    return view.look(*_address(folder)[:2])
