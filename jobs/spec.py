"""Resolve a job file, command-line options or a mapping into a JobConfig. Defaults live in pipelines/config.py."""

import json
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import yaml

from batchloom.jobs.job_file import JobFile, JobFileError, KeyPath, Problem, parse_value, text_of
from batchloom.jobs.job_schema import FLAGS, describe, resolve
from batchloom.pipelines.config import JobConfig


@dataclass(frozen=True)
class Override:
    """One value from the command line; it takes precedence over the job file's."""

    path: KeyPath
    value: Any
    origin: str
    """The option as typed, for messages: `--text-column`."""


def load(path: str | None = None, overrides: Sequence[Override] = ()) -> JobConfig:
    """Resolve a job file (or none) and command-line options.

    Raises:
        JobFileError: the file or an option is wrong; names every problem with its line or option.
    """
    file = JobFile.read(path) if path is not None else JobFile({}, {})
    origins = {key: f"line {line}" for key, line in file.lines.items()}
    origins |= {override.path: override.origin for override in overrides}
    values, problems = _overlay(file.values, overrides)
    config, found = resolve(values, origins, FLAGS)
    return _checked(path or "The command line", config, [*found, *problems])


def as_trial(config: JobConfig) -> JobConfig:
    """Return a job of few rows with an output of its own beside that of the whole job: `out-limit-100`."""
    path = f"{config.output.path.rstrip('/')}-limit-{config.input.limit}"
    return replace(config, output=replace(config.output, path=path))


def from_mapping(job: Mapping[str, Any]) -> JobConfig:
    """Resolve a mapping with a job file's keys, nested as there; paths may be `os.PathLike`, numbers numpy's.

    Raises:
        JobFileError: a key or value is wrong; names every problem.
    """
    strange: dict[str, Any] = {}
    try:
        plain = _plain(job, "", strange)
    except RecursionError:
        raise JobFileError(
            "The job", [Problem("", "its mappings or lists hold themselves, or are nested too deep.")]
        ) from None
    config, found = resolve(plain, {})
    problems = [
        Problem("", f"{key}: cannot be a {type(value).__name__}. Use texts, numbers, booleans, lists and mappings.")
        for key, value in strange.items()
    ]
    others = [problem for problem in found if problem.message.partition(": ")[0] not in strange]
    return _checked("The job", config, [*others, *problems])


def from_record(job: Mapping[str, Any], source: str) -> JobConfig:
    """Resolve the job in an output folder's record, which `dataclasses.asdict` made of a JobConfig.

    Raises:
        JobFileError: the record holds keys or values that this version does not know; `source` names it.
    """
    config, found = resolve(job, {})
    return _checked(source, config, found)


def to_yaml(job: Mapping[str, Any]) -> str:
    """Return `job`, a JobConfig after `dataclasses.asdict`, as the text of an equivalent job file."""
    return text_of(json.loads(json.dumps(job)))


def _checked(source: str, config: JobConfig | None, problems: list[Problem]) -> JobConfig:
    if config is None or problems:
        raise JobFileError(source, problems)
    return config


def _plain(value: Any, key: str, strange: dict[str, Any]) -> Any:
    """Return `value` in JSON's types; what has none becomes None and is added to `strange` under its dotted key."""
    match value:
        case None | bool() | str():
            return value
        case np.bool_():
            return bool(value)
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            return float(value)
        case os.PathLike():
            return os.fsdecode(value)
        case Mapping():
            prefix = f"{key}." if key else ""
            return {str(name): _plain(item, f"{prefix}{name}", strange) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item, f"{key}[{index}]", strange) for index, item in enumerate(value)]
    strange[key] = value
    return None


def parse_set(text: str) -> Override:
    """Parse `generation.num_beams=1` into an Override; the value is read as YAML.

    Raises:
        JobFileError: there is no key, no `=`, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        problem = Problem(f"--set {text}", "write it as key=value, such as generation.num_beams=1.")
        raise JobFileError("The command line", [problem])
    try:
        return Override(path, parse_value(value), f"--set {key.strip()}")
    except yaml.YAMLError as error:
        problem = Problem(f"--set {text}", f"the value {value!r} is not valid YAML; quote it.")
        raise JobFileError("The command line", [problem]) from error


def _overlay(values: Mapping[str, Any], overrides: Sequence[Override]) -> tuple[dict[str, Any], list[Problem]]:
    """Return a copy of the file's values with the overrides applied, and the overrides that cannot be."""
    merged: dict[str, Any] = json.loads(json.dumps(values, default=str))
    problems = []
    for override in overrides:
        section: Any = merged
        for depth, key in enumerate(override.path[:-1]):
            if section.get(key) is None:  # absent, or a section left empty in the file
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                held = ".".join(override.path[: depth + 1])
                message = f"{held} holds {describe(section)} and no keys, so nothing can be set in it."
                problems.append(Problem(override.origin, message))
                break
        else:
            section[override.path[-1]] = override.value
    return merged, problems
