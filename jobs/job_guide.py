"""What helps to write a job file: a commented one to begin with, and a JSON Schema for editors. Both are made of
pipelines/config.py, so that they are never older than what `run` takes."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from batchloom.jobs.job_schema import json_schema
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks import TASKS

WIDTH = 100
SCHEMA_FILE = "job.schema.json"
REQUIRED = {"task": "", "model": "models/mine", "input.paths": ["corpus/"], "output.path": "out"}
OPTIONS: dict[str, dict[str, Any]] = {  # of tasks that need some
    "zero-shot-classification": {"candidate_labels": ["politics", "sport", "science"]},
}
GENERATION: dict[str, dict[str, Any]] = {"text-generation": {"max_new_tokens": 64}}


def template(task: str) -> str:
    """Return a job file for a task: what it needs, and every other key as a comment with its default and meaning.

    Raises: ConfigError where there is no such task.
    """
    if task not in TASKS:
        raise ConfigError(f"There is no task {task!r}. Choose one of: {', '.join(TASKS)}.")
    head = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        f"# The line above is for editors: batchloom schema > {SCHEMA_FILE}",
        "# Keys behind a # have the default that stands there: take the # away to change it.",
        "",
    ]
    return "\n".join([*head, *_lines(JobConfig, task), ""])


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a job file, with what each key means."""
    found = json_schema()
    found["title"] = "A Batchloom job"
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["properties"]["task"] = {"enum": list(TASKS)}
    for kind in _sections(JobConfig):
        place = found if kind is JobConfig else found["$defs"][kind.__name__]
        told_below = documented(kind)
        for name, inner in get_type_hints(kind).items():
            told = told_below.get(name) or inspect.getdoc(inner)
            held = place["properties"][name]
            place["properties"][name] = {**({"allOf": [held]} if "$ref" in held else held), "description": told}
    return found


@cache
def documented(kind: type) -> dict[str, str]:
    """Return the texts below a dataclass's fields, by field, as words of a job file."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            told = " ".join(str(below.value.value).split())  # type: ignore[attr-defined]
            found[field.target.id] = re.sub(r"\bNone\b", "null", told)
    return found


def _sections(kind: type) -> Iterator[type]:
    yield kind
    for inner in get_type_hints(kind).values():
        if isinstance(inner, type) and is_dataclass(inner):
            yield from _sections(inner)


def _lines(kind: type, task: str, path: str = "") -> Iterator[str]:
    """Yield the lines of a section."""
    kinds, told = get_type_hints(kind), documented(kind)
    indent = "  " * path.count(".")
    for field in fields(kind):
        name = f"{path}{field.name}"
        inner = kinds[field.name]
        if isinstance(inner, type) and is_dataclass(inner):
            lines = list(_lines(inner, task, f"{name}."))
            is_needed = any(not line.lstrip().startswith("#") for line in lines)
            yield f"{indent}{'' if is_needed else '#'}{field.name}:"
            yield from lines
            continue
        for line in textwrap.wrap(told.get(field.name, ""), WIDTH - len(indent)):
            yield f"{indent}# {line}"
        needed = _needed(name, task)
        value = _default(field) if needed is None else needed
        yield f"{indent}{'#' if needed is None else ''}{field.name}: {json.dumps(value, ensure_ascii=False)}"


def _needed(name: str, task: str) -> Any:
    """Return the value of a key that a job has to name; None for one with a default."""
    match name:
        case "task":
            return task
        case "task_options":
            return OPTIONS.get(task)
        case "generation":
            return GENERATION.get(task)
    return REQUIRED.get(name)


def _default(field: "Field[Any]") -> Any:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
