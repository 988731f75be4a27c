"""What arguments and options name: a job, an output."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchloom.jobs.reports.view import View
    from batchloom.pipelines.config import JobConfig


def flags(
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
        "--keep-columns": names(keep_columns),
        "--limit": limit,
    }
    return {name: value for name, value in given.items() if value is not None}


def names(text: str | None) -> list[str] | None:
    """Split `id, url` into a list; an empty text is an empty list, and None, an absent option, stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def load(job: str | None, sets: list[str] | None, flags: dict[str, object]) -> "JobConfig":
    from batchloom.jobs import spec
    from batchloom.jobs.job_schema import FLAGS

    overrides = [spec.Override(FLAGS[name], value, name) for name, value in flags.items()]
    config = spec.load(job, [*overrides, *(spec.parse_set(text) for text in sets or [])])
    return spec.as_trial(config) if "--limit" in flags else config


def address(folder: str) -> "tuple[str, dict[str, object], JobConfig | None]":
    """Return an output folder, its filesystem's options, and the job where a job file is given, which names both."""
    from batchloom.pipelines.stores.storage import absolute

    if not folder.endswith((".yaml", ".yml")):
        return absolute(folder), {}, None
    job = load(folder, None, {})
    return absolute(job.output.path), dict(job.output.storage_options), job


def look(folder: str) -> "View":
    from batchloom.jobs.reports import view

    return view.look(*address(folder)[:2])
