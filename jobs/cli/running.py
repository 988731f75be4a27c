"""Commands on a job: run, plan."""

from typing import Annotated, Any

import typer

from batchloom.jobs.cli.command import command
from batchloom.jobs.cli.given import flags, load, names
from batchloom.jobs.cli.options import (
    Input,
    JobFile,
    Json,
    KeepColumns,
    Limit,
    Model,
    RetryErrors,
    Sets,
    Target,
    Task,
    TextColumn,
)
from batchloom.models.footprint import Machine


def _machine(help_text: str) -> Any:
    return typer.Option(help=help_text, min=1, rich_help_panel="What estimates assume: an H100 of a node of eight")


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
    given = flags(task, model, inputs, output_path, text_column, keep_columns, limit)
    with command(as_json) as output:
        from batchloom import pipelines

        config = load(job, sets, given)
        with output.watching() as watcher:
            manifest = pipelines.run(config, watcher, names(retry_errors), even_if_running)
        output.finished(manifest, config.output.path)


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
        int | None,
        typer.Option(metavar="ROWS", min=1, help="Read so many rows: tokens, truncations and errors to expect."),
    ] = None,
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
    given = flags(task, model, inputs, output_path, text_column, keep_columns, limit)
    with command(as_json) as output:
        from batchloom.jobs.reports.dry_run import DryRun

        machine = Machine(
            memory=memory * 1e9,
            bandwidth=bandwidth * 1e9,
            half_flops=half_flops * 1e12,
            float_flops=float_flops * 1e12,
            link=link * 1e9,
            storage=storage * 1e9,
        )
        dry_run = DryRun.of(load(job, sets, given), machine, tokens, sample or 0)
        output.result(dry_run.values())
        output.pairs(dry_run.words())
        dry_run.refuse()
