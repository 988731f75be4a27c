"""Arguments and options that several commands have."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

JobFile = Annotated[str | None, typer.Argument(metavar="JOB.YAML", help="The job file.", show_default=False)]
Folder = Annotated[str, typer.Argument(metavar="OUTPUT", help="An output folder, or the job file that names it.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the job: generation.num_beams=1. Repeatable."),
]


def task_names(incomplete: str) -> list[str]:
    """Return the tasks that begin so, for shells that complete them."""
    from batchloom.pipelines.tasks import TASKS

    return [name for name in TASKS if name.startswith(incomplete)]


Task = Annotated[str | None, typer.Option("--task", help="Instead of the job file's task.", autocompletion=task_names)]
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


class BareKinds(TyperCommand):
    """Takes --retry-errors and --errors without kinds, too: typer has no options whose value can be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f"{arg}=" if arg in ("--retry-errors", "--errors") else arg for arg in args])
