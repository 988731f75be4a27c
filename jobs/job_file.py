"""Read a job file: YAML, with the line number of every key. Which keys a job has is decided in job_schema.py."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from batchloom.pipelines.errors import ConfigError

KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """One error in a job, and where it was written."""

    where: str
    """`line 7`, the option on the command line, or "" for a missing key and for keys of a mapping."""
    message: str


class JobFileError(ConfigError):
    """A job file, a job's mapping or a command-line option is wrong. The message lists every problem."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        width = max(len(problem.where) for problem in problems)
        column = width + 2 if width else 0
        lines = [f"  {problem.where:<{column}}{problem.message}" for problem in problems]
        super().__init__("\n".join([f"{source} has {count}:", *lines]))


@dataclass(frozen=True)
class JobFile:
    """The content of a job file: unvalidated values, and the line of every key."""

    values: Mapping[str, Any]
    lines: Mapping[KeyPath, int]
    """From 1. List items have no entry of their own: the line of a list is its key's."""

    @classmethod
    def read(cls, path: str) -> "JobFile":
        """Read a YAML file.

        Raises:
            JobFileError: the file is missing, is not YAML, has a duplicate key, or is not a mapping.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise JobFileError(path, [Problem("", f"the job file cannot be read: {reason}.")]) from error
        try:
            return cls._parse(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"line {mark.line + 1}" if mark else ""
            said = ", ".join(part for part in (error.context, error.problem) if part)
            raise JobFileError(path, [Problem(where, f"not valid YAML: {said}.{_hint(said)}")]) from error
        except yaml.YAMLError as error:
            raise JobFileError(path, [Problem("", f"not valid YAML: {error}.")]) from error

    @classmethod
    def _parse(cls, text: str) -> "JobFile":
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return cls({}, {})
        if not isinstance(root, yaml.MappingNode):
            asked = "a job file is a mapping such as 'task: summarization'"
            raise yaml.MarkedYAMLError(problem=asked, problem_mark=root.start_mark)
        return cls(loader.construct_document(root), dict(_lines(root, ())))


def parse_value(text: str) -> Any:
    """Parse the value of `--set key=value` by a job file's rules. Raises: yaml.YAMLError where it is not YAML."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, reads 1e-3 as a number and leaves 2024-01-01 a text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                found = "a list" if isinstance(key, yaml.SequenceNode) else "a mapping"
                raise yaml.MarkedYAMLError(problem=f"a key is a text, found {found}", problem_mark=key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} stands here a second time", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _lines(node: yaml.Node, path: KeyPath) -> list[tuple[KeyPath, int]]:
    if not isinstance(node, yaml.MappingNode):
        return []
    found = []
    for key, value in node.value:
        inner = (*path, str(key.value))
        found += [(inner, key.start_mark.line + 1), *_lines(value, inner)]
    return found


def _hint(said: str) -> str:
    if "\\t" in said or "tab" in said:
        return " YAML is indented with spaces."
    if "mapping values are not allowed" in said:
        return " A text that holds ': ' needs quotes; otherwise look at the indentation."
    if "alias" in said:
        return " A path that starts with * needs quotes."
    return ""
