"""Commands on a job: run, plan."""

from contextlib import nullcontext
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
from batchloom.jobs.cli.without_pandas import keep_pandas_out
from batchloom.pipelines.errors import ConfigError


def _machine(help_text: str, kind: type = float) -> Any:
    bounds: dict[str, Any] = {} if kind is str else {"min": 1}
    return typer.Option(
        help=help_text, rich_help_panel="The GPU of estimates: the one that is here, or an H100", **bounds
    )


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
    probe: Annotated[
        bool, typer.Option("--probe", help="Start one replica on some hundred rows: speed, and hours for all.")
    ] = False,
    price_per_hour: Annotated[
        float | None, typer.Option(metavar="MONEY", min=0, help="Of one replica: what all will cost, with --probe.")
    ] = None,
    as_json: Json = False,
    gpu: Annotated[str | None, _machine("Its figures: h100, a100, l4, ...", str)] = None,
    memory: Annotated[float | None, _machine("Of a device, in GB.")] = None,
    bandwidth: Annotated[float | None, _machine("Between a device and its memory, in GB/s.")] = None,
    half_flops: Annotated[float | None, _machine("In float16 and bfloat16, in TFLOP/s.")] = None,
    float_flops: Annotated[float | None, _machine("In float32, in TFLOP/s.")] = None,
    link: Annotated[float | None, _machine("Between devices, each way, in GB/s.")] = None,
    storage: Annotated[float | None, _machine("From storage to all ranks together, in GB/s.")] = None,
    tokens: Annotated[int | None, _machine("That a sequence looks back at, its source included.")] = None,
) -> None:
    """Show what `run` would do, without doing it."""
    given = flags(task, model, inputs, output_path, text_column, keep_columns, limit)
    with command(as_json) as output:
        if not probe:
            keep_pandas_out()
        from batchloom.jobs.reports.assumption import Assumption
        from batchloom.jobs.reports.dry_run import DryRun, Looks

        units = {"memory": 1e9, "bandwidth": 1e9, "half_flops": 1e12, "float_flops": 1e12, "link": 1e9, "storage": 1e9}
        told = (memory, bandwidth, half_flops, float_flops, link, storage)
        figures = {name: value * units[name] for name, value in zip(units, told, strict=True) if value is not None}
        if price_per_hour is not None and not probe:
            raise ConfigError("--price-per-hour: nobody knows how many hours. Add --probe, which measures the speed.")
        looks = Looks(sample or 0, probe, price_per_hour)
        with output.relaying() if probe else nullcontext():
            dry_run = DryRun.of(load(job, sets, given), Assumption.of(gpu, figures), tokens, looks)
        output.result(dry_run.values())
        output.pairs(dry_run.words())
        dry_run.refuse()
