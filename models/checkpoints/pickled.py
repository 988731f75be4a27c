"""The shapes of the tensors in a .bin file, without torch: its pickle is read, and nothing that it names is called.

A .bin file is a zip with a pickle, data.pkl, in which each tensor is a call of torch's with its storage and its size.
"""

import pickle
import zipfile
from collections.abc import Callable
from typing import IO, Any


class _Named(dict[str, Any]):
    """Stands for an OrderedDict, which may have attributes."""


class _Nothing:
    """Stands for whatever else of torch a pickle names: storages and dtypes."""

    def __init__(self, *_: Any) -> None:
        pass


class _Shape(tuple[int, ...]):
    """Stands for a tensor."""


def _tensor(_storage: Any, _offset: int, size: tuple[int, ...], *_: Any) -> _Shape:
    return _Shape(size)


def _parameter(data: Any, *_: Any) -> Any:
    return data


_STANDING: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _Named,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" or (module, name) in _STANDING:
            return _STANDING.get((module, name), _Nothing)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a tensor")

    def persistent_load(self, pid: Any) -> None:
        """Stand for a storage, whose bytes are not read."""


def shapes_of_pickle(file: IO[bytes]) -> dict[str, tuple[int, ...]] | None:
    """Return the tensors' shapes by name; None where the file has none that can be read so: old, or with code."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            return None
        with archive.open(pickles[0]) as content:
            try:
                found = _Reader(content).load()
            except (pickle.UnpicklingError, EOFError, TypeError, ValueError, AttributeError, IndexError, KeyError):
                return None  # loading says what is wrong with it
    if not isinstance(found, dict):
        return None
    return {name: tuple(value) for name, value in found.items() if isinstance(value, _Shape)}
