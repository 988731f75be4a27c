"""Records read from JSON: frozen dataclasses whose values are checked against their annotations."""

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
MAX_DEPTH = 50
LARGEST = 1 << 63


def parsed(content: bytes | str) -> Any:
    """Return the values in a JSON text. Raises: ValueError where it is none, or nested too deep for what we write."""
    try:
        values = json.loads(content)
        too_deep = is_deeper(values, MAX_DEPTH)
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return values


def from_json(kind: type[Record], values: Any) -> Record:
    """Return the dataclass `kind` made of a JSON object, nested as `dataclasses.asdict` nests it.

    A field with a default may be absent: an older version did not know it. A name that is not a field is ignored: a
    newer version wrote it. Raises: ValueError where a value is absent or of another type, and names it.
    """
    record: Record = _read(kind, values, "")
    return record


def _read(kind: Any, value: Any, path: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or (origin is Literal and value in arguments):
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _read(next(one for one in arguments if one is not type(None)), value, path)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        return _read_dataclass(kind, value, path)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        return {name: _read(arguments[1], item, _below(path, name)) for name, item in value.items()}
    if type(value) in ((int, float) if kind is float else (kind,)):
        if kind in (int, float) and not abs(value) < LARGEST:  # NaN is not
            raise ValueError(f"{path} is {_short(value)}, which is no number that we write")
        return value
    wanted = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    if is_dataclass(kind):
        wanted = "object"
    raise ValueError(f"{path or 'it'} is {_short(value)}, which is no {wanted}")


def _read_dataclass(kind: type, values: Mapping[str, Any], path: str) -> Any:
    found = {}
    for name, (hint, is_required) in _fields(kind).items():
        if name in values:
            found[name] = _read(hint, values[name], _below(path, name))
        elif is_required:
            raise ValueError(f"{_below(path, name)} is missing")
    return kind(**found)


@cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Return each field's annotation, and whether it has no default."""
    hints = get_type_hints(kind)
    return {
        field.name: (hints[field.name], field.default is MISSING and field.default_factory is MISSING)
        for field in fields(kind)
    }


def is_deeper(values: Any, depth: int) -> bool:
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    return any(depth == 0 or is_deeper(one, depth - 1) for one in inner)


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
