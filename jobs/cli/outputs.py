"""Commands on an output: verify, show, status, report."""

from typing import Annotated

import typer

from batchloom.jobs.cli.command import command
from batchloom.jobs.cli.given import address, look, names
from batchloom.jobs.cli.options import Folder, Json
from batchloom.jobs.cli.without_pandas import keep_pandas_out
from batchloom.jobs.exit_codes import ExitCode
from batchloom.pipelines.errors import ConfigError


def verify(
    folder: Folder,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every byte of every part, as Ray tasks; else sizes and versions tell.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Recount inputs and parts against the manifest: is every row there once, as it was written?"""
    with command(as_json) as output:
        from dataclasses import asdict

        if not deep:
            keep_pandas_out()

        from batchloom import pipelines

        path, options, job = address(folder)
        check = pipelines.deep_check if deep else None
        with output.relaying():
            found = pipelines.verify(path, options, job.input if job else None, check)
        output.result({"ok": found.ok, **asdict(found)})
        output.verified(found)
        raise typer.Exit(ExitCode.OK if found.ok else ExitCode.FAILED)


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
    with command(as_json) as output:
        keep_pandas_out()
        from batchloom.jobs.reports.view import chosen_columns
        from batchloom.pipelines.selection.words import WhereError

        view, kinds = look(folder), names(errors)
        is_search = where is not None or kinds is not None
        try:
            sample = view.matching(rows, where, kinds) if is_search else view.sample(rows)
        except WhereError as error:
            raise ConfigError(str(error).replace("input.where", "--where", 1)) from None
        chosen = chosen_columns(sample, names(columns))
        told = [{name: row.get(name) for name in chosen} for row in sample] if columns is not None else sample
        output.result({"totals": view.totals, "errors_by_kind": view.errors_by_kind}, rows=told)
        output.rows(sample, chosen)
        output.view(view)


def status(folder: Folder, as_json: Json = False) -> None:
    """Show how far a job is, from its output alone."""
    with command(as_json) as output:
        keep_pandas_out()
        from batchloom.jobs.reports.status import Status

        found = Status.of(look(folder), address(folder)[2])
        output.result(found.values())
        output.pairs(found.words())


def report(
    folder: Folder,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write a page of its own instead.")] = None,
    markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write the same as Markdown.")] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(metavar="AMOUNT", min=0, help="Of all machines that the job held: what it cost.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Report on an output: answers, samples, errors, speed, lengths."""
    with command(as_json) as output:
        keep_pandas_out()
        from batchloom.jobs.reports.analysis.report import Report
        from batchloom.jobs.reports.pages import files

        found = Report.of(look(folder), address(folder)[2], price_per_hour)
        if html is not None:
            from batchloom.jobs.reports.pages.page import page

            files.write("--html", html, page(found))
        if markdown is not None:
            from batchloom.jobs.reports.pages.markdown import markdown as as_markdown

            files.write("--markdown", markdown, as_markdown(found))
        output.result(found.values())
        written = [path for path in (html, markdown) if path is not None]
        if written:
            output.say(*(f"Report: {path}" for path in written))
        else:
            output.pairs(found.words())
