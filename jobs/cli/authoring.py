"""Commands for who writes a job file: init, schema, inspect."""

from typing import Annotated

import typer

from batchloom.jobs.cli.command import command
from batchloom.jobs.cli.options import Json, task_names
from batchloom.jobs.cli.without_pandas import keep_threads_out


def init(
    task: Annotated[
        str,
        typer.Argument(metavar="TASK", help="summarization, zero-shot-classification, ...", autocompletion=task_names),
    ],
) -> None:
    """Print a job file for a task, with every key, its default and its meaning."""
    with command(as_json=False) as output:
        keep_threads_out()
        from batchloom.jobs import job_guide

        output.say(*job_guide.template(task).splitlines())


def schema() -> None:
    """Print the JSON Schema of job files, for editors."""
    with command(as_json=False) as output:
        keep_threads_out()
        import json

        from batchloom.jobs import job_guide

        output.say(json.dumps(job_guide.schema(), indent=1))


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Path, fsspec URL or hf://org/name@revision.")],
    as_json: Json = False,
) -> None:
    """Show what a checkpoint is: classes, labels, lengths, defaults, memory. Its weights are not loaded."""
    with command(as_json) as output:
        keep_threads_out()
        from batchloom.jobs.reports.inspection import Inspection

        found = Inspection.of(model)
        output.result(found.values())
        output.pairs(found.words())
