"""The fingerprint, a hash of everything that decides an answer, and descriptions of where two of them differ."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any


def fingerprint(components: Mapping[str, Any]) -> str:
    """Return the sha256 of the components as canonical JSON: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(components, sort_keys=True).encode()).hexdigest()


def as_json(components: Mapping[str, Any]) -> dict[str, Any]:
    """Return the components as they are read back from a JSON file: tuples are lists, keys are strings."""
    read: dict[str, Any] = json.loads(json.dumps(components))
    return read


def differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield a line for each component that differs: `generation.num_beams was 4, is 1`."""
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{path}{name}.")
        elif old != new:
            yield f"{path}{name} was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
