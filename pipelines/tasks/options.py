"""Parse task options into a frozen dataclass, or raise one error that names every problem. It knows no task."""

import difflib
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from batchloom.pipelines.errors import ConfigError

Options = TypeVar("Options")

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}


def read_options(task: str, options: Mapping[str, Any], kind: type[Options]) -> Options:
    """Return `kind(**options)`, a frozen dataclass.

    Raises: ConfigError, which lists every unknown name and every value of a wrong type.
    """
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    problems = [*_unknown(task, options, known)]
    values = {}
    for name in options:
        if name in known:
            values[name] = tuple(options[name]) if isinstance(options[name], list) else options[name]
            if not _fits(values[name], hints[name]):
                problems.append(f"task_options.{name}: must be {_in_words(hints[name])}; found {options[name]!r}.")
    if problems:
        raise ConfigError("\n".join(problems))
    return kind(**values)


def _unknown(task: str, options: Mapping[str, Any], known: list[str]) -> Iterator[str]:
    unknown = [name for name in options if name not in known]
    if unknown:
        hints = {name: difflib.get_close_matches(name, known, 1) for name in unknown}
        asked = ", ".join(f"{name} (did you mean {hint[0]}?)" if hint else name for name, hint in hints.items())
        yield f"task_options: {task} does not know {asked}. It knows: {', '.join(known) or 'no options'}."


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(one, get_args(hint)[0]) for one in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _in_words(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(one) for one in get_args(hint))
    if origin is tuple:
        inner = get_args(hint)[0]
        return "a list of texts" if inner is str else f"a list of {', '.join(map(str, get_args(inner)))}"
    return _WORDS[hint]
