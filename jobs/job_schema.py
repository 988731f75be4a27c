"""The schema of a job: validate plain values into a JobConfig, or list their problems. It reads no files."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails

from batchloom.jobs.job_file import KeyPath, Problem
from batchloom.jobs.variables import variable
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.tasks import TASKS

FLAGS: Mapping[str, KeyPath] = {
    "--task": ("task",),
    "--model": ("model",),
    "--input": ("input", "paths"),
    "--text-column": ("input", "text_column"),
    "--keep-columns": ("input", "keep_columns"),
    "--limit": ("input", "limit"),
    "--output": ("output", "path"),
}
"""Options of the command line that stand for a key. Every other key is reached by `--set`."""


def resolve(
    values: Mapping[str, Any], origins: Mapping[KeyPath, str], flags: Mapping[str, KeyPath] | None = None
) -> tuple[JobConfig | None, list[Problem]]:
    """Return the job that `values` describe, or None and all of their problems.

    Problems name where a key was written, from `origins`, and the option of `flags` that a missing key could come from.
    """
    problems = []
    task = values.get("task")
    if isinstance(task, str) and task not in TASKS:
        message = f"task: there is no task {task!r}.{_choose(task, list(TASKS))}"
        problems.append(Problem(_where(("task",), origins), message))
    try:
        # Through JSON: pydantic's strict mode then accepts a list for a tuple, and still refuses "3" for a number.
        config = _ADAPTER.validate_json(json.dumps(values), strict=True)
    except ValidationError as invalid:
        problems += [problem for error in invalid.errors() for problem in _problems(error, origins, flags or {})]
    return (None, sorted(problems, key=_reading_order)) if problems else (config, [])


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema by which `resolve` validates."""
    return _ADAPTER.json_schema()


def describe(value: Any) -> str:
    """Return a value as messages name it: `the text 'x'`, `the whole number 3`, `a list`, `nothing`."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {value!r}"
        case int():
            return f"the whole number {value}"
        case float():
            return f"the number {value}"
        case list():
            return "a list"
    return "a mapping"


def _sections(owner: type = JobConfig, path: KeyPath = ()) -> Iterator[tuple[KeyPath, type]]:
    """Yield each section of a job and the dataclass of its keys: (), ("input",), ("engine", "replicas"), ..."""
    yield path, owner
    for name, kind in get_type_hints(owner).items():
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _sections(kind, (*path, name))


_SECTIONS = dict(_sections())

# pydantic reads its configuration from the dataclasses. It is set here because pipelines must not import pydantic.
for _section in _SECTIONS.values():
    with_config(ConfigDict(extra="forbid"))(_section)

with variable("PYDANTIC_DISABLE_PLUGINS", "__all__"):  # to look for some it reads every package's entry points
    _ADAPTER = TypeAdapter(JobConfig)


def _problems(error: ErrorDetails, origins: Mapping[KeyPath, str], flags: Mapping[str, KeyPath]) -> Iterator[Problem]:
    path = tuple(str(part) for part in error["loc"])
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        for key in _required(path):
            flag = next((f", or give {flag}" for flag, stands_for in flags.items() if stands_for == key), "")
            yield Problem(_where(path, origins), f"{'.'.join(key)}: required and not there. Add the key{flag}.")
    else:
        yield Problem(_where(path, origins), f"{_dotted(error['loc']) or 'the job'}: {_explain(error, path)}")


def _required(path: KeyPath) -> list[KeyPath]:
    """Return the keys to add where `path` is missing: the key itself, or a section's required keys."""
    if path not in _SECTIONS:
        return [path]
    return [
        (*path, field.name)
        for field in fields(_SECTIONS[path])
        if field.default is MISSING and field.default_factory is MISSING
    ]


def _explain(error: ErrorDetails, path: KeyPath) -> str:
    if error["type"] == "json_invalid":  # of json.dumps in `resolve`
        too_deep = "recursion" in error["msg"]
        return "is nested too deep." if too_deep else "a text is not valid Unicode. Paths and names must be UTF-8."
    found = describe(error["input"])
    match error["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"unknown key.{_choose_key(path)}"
        case "literal_error":
            expected = error["ctx"]["expected"].replace("'", "")
            return f"{found} is not one of {expected}."
        case "string_type" if isinstance(error["input"], (int, float)):
            return f"needs a text, found {found}. Put it in quotes."
        case "tuple_type" if isinstance(error["input"], str):
            return f"needs a list, found {found}. Write [{error['input']}]."
        case kind if kind in _NEEDS:
            has_default = path[:-1] not in _SECTIONS or path not in _required(path[:-1])
            emptied = " Leave the key out to get its default." if error["input"] is None and has_default else ""
            return f"needs {_NEEDS[kind]}, found {found}.{emptied}"
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, found {found}."


_NEEDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "keys with values",
    "mapping_type": "keys with values",
    "dataclass_type": "keys with values",
}


def _choose_key(path: KeyPath) -> str:
    """Return a hint for an unknown key: the closest key of its section, the section that has it, or all keys."""
    *parents, key = path
    known = [field.name for field in fields(_SECTIONS[tuple(parents)])]
    homes = [
        ".".join((*section, key)) for section, owner in _SECTIONS.items() if key in {f.name for f in fields(owner)}
    ]
    if homes and not difflib.get_close_matches(key, known, n=1, cutoff=0.8):
        return f" It is called {' or '.join(homes)}."
    return _choose(key, known)


def _choose(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f" Did you mean {close[0]}?" if close else f" There are: {', '.join(known)}."


def _dotted(location: Sequence[str | int]) -> str:
    """Format a key: ("input", "paths", 0) is input.paths[0]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _where(path: KeyPath, origins: Mapping[KeyPath, str]) -> str:
    """Return the line or option of a key, or of the innermost section around it that was written."""
    while path and path not in origins:
        path = path[:-1]
    return origins.get(path, "")


def _reading_order(problem: Problem) -> tuple[bool, int]:
    """Sort key: problems of the file by line, then those of the command line and of missing keys."""
    in_file = problem.where.startswith("line ")
    return not in_file, int(problem.where.removeprefix("line ")) if in_file else 0
