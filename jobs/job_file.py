"""Read a job file: YAML, with the line number of every key. Which keys a job has is decided in job_schema.py."""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from batchloom.pipelines.errors import ConfigError

KeyPath = tuple[str, ...]

MAX_BYTES = 1 << 20  # a list of 30,000 labels fits; PyYAML takes seconds for it
MAX_NODES = 200_000
MAX_DEPTH = 50


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
            JobFileError: the file is missing, too large or no regular file, is not YAML, has a duplicate key, or is not
                a mapping.
        """
        try:
            text = _read_text(path)
        except (OSError, ValueError) as error:
            raise JobFileError(
                path, [Problem("", f"the job file cannot be read: {_unreadable(path, error)}")]
            ) from error
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


def _unreadable(path: str, error: OSError | ValueError) -> str:
    """Return why, and what to do."""
    match error:
        case FileNotFoundError():
            looked_in = "" if os.path.isabs(path) or not os.path.exists(".") else f" in {os.getcwd()}"
            return f"there is no such file{looked_in}. Check the path, or write one: batchloom init TASK > {path}"
        case IsADirectoryError():
            return "it is a folder. Name the job file (a .yaml), not its input or output."
        case OSError(strerror=str(words)):
            return f"{words}. Look at its permissions, or copy it to a place that this user may read."
        case UnicodeError():
            return "it is not UTF-8 text. Name the job file (a .yaml), or save it as UTF-8."
    return f"{error}."


def parse_value(text: str) -> Any:
    """Parse the value of `--set key=value` by a job file's rules. Raises: yaml.YAMLError where it is not YAML."""
    return yaml.load(text, Loader=_Loader)


def text_of(values: Any) -> str:
    """Return plain values as YAML which a job file's rules read as the same values."""
    # allow_unicode=False: PyYAML writes U+0085 unescaped, and then reads it back as a space.
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=False)


def _read_text(path: str) -> str:
    """Read a regular file of at most MAX_BYTES. Raises: OSError, UnicodeError, ValueError."""
    # A pipe without a writer would block the open, a device may have no end.
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is a pipe or a device; save it as a file")
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB, too large for a job file")
    return content.decode("utf-8")


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, reads 1e-3 as a number and leaves 2024-01-01 a text.

    It refuses what takes more memory than its text: aliases that multiply or hold themselves, and nesting without end.
    """

    def get_single_node(self) -> yaml.Node | None:
        try:
            root = super().get_single_node()
        except RecursionError:
            raise yaml.YAMLError("it is nested too deep") from None
        if root is not None:
            _refuse_bombs(root)
        return root

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of !!int x, say
            raise yaml.MarkedYAMLError(problem=f"it cannot be read ({error})", problem_mark=node.start_mark) from error

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


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts in quotes what _Loader would read as a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def _refuse_bombs(root: yaml.Node) -> None:
    """Raises: MarkedYAMLError where a node is nested too deep, holds itself, or has too many values with aliases."""
    # By a node's id: of the tree below it, with aliases written out; 0 while it is counted.
    num_nodes: dict[int, int] = {}

    def count(node: yaml.Node, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="it is nested too deep", problem_mark=node.start_mark)
        if (known := num_nodes.get(id(node))) is not None:
            if not known:
                raise yaml.MarkedYAMLError(problem="it holds itself by an alias", problem_mark=node.start_mark)
            return known
        num_nodes[id(node)] = 0
        inner = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
        below = 0 if isinstance(node, yaml.ScalarNode) else sum(count(one, depth + 1) for one in inner)
        if below >= MAX_NODES:
            raise yaml.MarkedYAMLError(
                problem=f"with its aliases it holds more than {MAX_NODES:,} values", problem_mark=node.start_mark
            )
        num_nodes[id(node)] = below + 1
        return below + 1

    count(root, 0)


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
