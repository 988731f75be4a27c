"""A job file and the options beside it become a JobConfig. The defaults are not known here; see pipelines/config.py."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from batchloom.jobs.job_file import JobFile, JobFileError, KeyPath, Problem, parse_value
from batchloom.jobs.job_schema import describe, resolve
from batchloom.pipelines.config import JobConfig


@dataclass(frozen=True)
class Override:
    """One value from the command line; it wins over the job file's."""

    path: KeyPath
    value: Any
    origin: str
    """The option as typed, for messages: `--text-column`."""


def load(path: str | None = None, overrides: Sequence[Override] = ()) -> JobConfig:
    """Resolves a job file (or none) and the options beside it.

    Raises:
        JobFileError: with every problem of the file and the options, each with its line or option.
    """
    file = JobFile.read(path) if path is not None else JobFile({}, {})
    origins = {key: f"line {line}" for key, line in file.lines.items()}
    origins |= {override.path: override.origin for override in overrides}
    values, problems = _overlay(file.values, overrides)
    return _resolve(path or "The command line", values, problems, origins)


def from_mapping(job: Mapping[str, Any]) -> JobConfig:
    """Resolve a job that a program holds as a mapping of a job file's keys; paths may be `os.PathLike`.

    Raises:
        JobFileError: with every problem of the mapping.
    """
    values, _ = _overlay(job, ())
    return _resolve("The job", values, [], {})


def from_record(job: Mapping[str, Any], source: str) -> JobConfig:
    """The job that an output folder's own record holds, as `dataclasses.asdict` wrote it."""
    return _resolve(source, dict(job), [], {})


def to_yaml(job: Mapping[str, Any]) -> str:
    """A job file that says everything `job` says; a JobConfig becomes one by `dataclasses.asdict`."""
    # ASCII with escapes: as it stands, PyYAML writes U+0085 in a way that it reads back as a space.
    return yaml.safe_dump(json.loads(json.dumps(job)), sort_keys=False, allow_unicode=False)


def _resolve(
    source: str, values: Mapping[str, Any], problems: list[Problem], origins: Mapping[KeyPath, str]
) -> JobConfig:
    config, found = resolve(values, origins)
    if config is None or problems:
        raise JobFileError(source, [*found, *problems])
    return config


def parse_set(text: str) -> Override:
    """`generation.num_beams=1` as an Override; the value is read as YAML.

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
    """The file's values with the overrides laid over them; the file's own mapping stays as it is."""
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
