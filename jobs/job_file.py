"""A job file is YAML with line numbers. Which keys a job has is not known here; see jobs/spec.py."""

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
    """One thing that is wrong with a job, and where it was written."""

    where: str
    """`line 7`, the option on the command line, or "" for a key that is nowhere."""
    message: str


class JobFileError(ConfigError):
    """A job file or the options beside it are wrong. The message names every problem, not only the first."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        width = max(len(problem.where) for problem in problems)
        column = width + 2 if width else 0
        lines = [f"  {problem.where:<{column}}{problem.message}" for problem in problems]
        super().__init__("\n".join([f"{source} has {count}:", *lines]))


@dataclass(frozen=True)
class JobFile:
    """What a job file says: its values as they stand, and the line of every key."""

    values: Mapping[str, Any]
    lines: Mapping[KeyPath, int]
    """Counted from one. List items are not keys; the key that holds the list stands for them."""

    @classmethod
    def read(cls, path: str) -> "JobFile":
        """Reads a YAML file.

        Raises:
            JobFileError: the file is not there, is no YAML, has a key twice, or is no mapping.
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
    """The value of `--set key=value`, read as a job file would read it; raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """SafeLoader with fewer surprises: a key given twice is refused, 1e-3 is a number, 2024-01-01 is a text."""

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
