"""The layout of one weight file: safetensors, or a .bin pickle that holds tensors and nothing else. It knows no model.

A safetensors file is eight bytes with the header's length, the header (JSON: name -> dtype, shape, byte range), then
the tensors' bytes. A .bin file is an uncompressed zip: a pickle with the names, and a member for each tensor. So in
both, any slice of rows is one byte range, on a disk or in an object store.
"""

import json
import math
import pickle
import zipfile
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from batchloom.models.checkpoints.hub import ModelSource
from batchloom.models.errors import CheckpointError

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """One tensor of a weight file: contiguous rows from `first_byte`, or a `value` where the file has no byte range."""

    file_name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    first_byte: int = 0
    value: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def num_rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def read_index(source: ModelSource, file_name: str) -> dict[str, StoredTensor]:
    """Return the tensors of one weight file by name, without reading their bytes where the format allows it.

    Raises: CheckpointError where the file is damaged, holds code, or has a dtype that is not in DTYPES.
    """
    return (
        _read_safetensors(source, file_name) if file_name.endswith(".safetensors") else _read_pickle(source, file_name)
    )


def read_bytes(source: ModelSource, file_name: str, start: int, stop: int) -> Bytes:
    """Read a byte range of a weight file. A local file is memory-mapped, copy-on-write, and reads only touched pages.

    Raises: OSError where the file cannot be read.
    """
    path = source.weight_path(file_name)
    if start == stop:
        return np.empty(0, dtype=np.uint8)
    if source.is_local:
        return np.memmap(path, dtype=np.uint8, mode="c", offset=start, shape=(stop - start,))
    # A bytearray is writable, which torch.from_numpy requires.
    return np.frombuffer(bytearray(source.filesystem.cat_file(path, start=start, end=stop)), dtype=np.uint8)


def _read_safetensors(source: ModelSource, file_name: str) -> dict[str, StoredTensor]:
    problem = f"Model {source.uri!r}: {file_name} is not a whole safetensors file"
    size = source.filesystem.size(source.weight_path(file_name))
    if size < 8:
        raise CheckpointError(f"{problem}: {size} bytes long. Copy the file again.")
    data_start = 8 + int.from_bytes(read_bytes(source, file_name, 0, 8).tobytes(), "little")
    if data_start > size:
        raise CheckpointError(f"{problem}: its header should end at byte {data_start}, the file at {size}.")
    try:
        header: dict[str, Any] = json.loads(read_bytes(source, file_name, 8, data_start).tobytes())
    except ValueError as error:
        raise CheckpointError(f"{problem}: {error}. Copy the file again.") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            known = ", ".join(DTYPES)
            raise CheckpointError(f"Model {source.uri!r}: tensor {name} is stored as {entry['dtype']}; known: {known}.")
        first, end = entry["data_offsets"]
        stored = StoredTensor(file_name, DTYPES[entry["dtype"]], tuple(entry["shape"]), data_start + first)
        if end - first != stored.num_bytes or data_start + end > size:
            raise CheckpointError(
                f"{problem}: tensor {name} should end at byte {data_start + end}, the file at {size}."
            )
        tensors[name] = stored
    return tensors


def _read_pickle(source: ModelSource, file_name: str) -> dict[str, StoredTensor]:
    """Return a .bin file's tensors. weights_only unpickles tensors and plain values, and refuses everything else."""
    with source.filesystem.open(source.weight_path(file_name), "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            if not zipfile.is_zipfile(file):  # a zip's central directory is at its end
                raise CheckpointError(f"Model {source.uri!r}: {file_name} is cut short. Copy the file again.")
            # Fake tensors have shapes and no memory: only the pickle itself is read.
            with FakeTensorMode():
                fakes = _unpickle(source, file_name, file)
            if all(tensor.is_contiguous() for tensor in fakes.values()):
                return {name: _located(file_name, tensor) for name, tensor in fakes.items()}
        # Saved before torch 1.6, or with transposed tensors, as some conversions do: no byte ranges, so read it whole.
        values = _unpickle(source, file_name, file)
    return {name: StoredTensor(file_name, one.dtype, tuple(one.shape), value=one) for name, one in values.items()}


def _unpickle(source: ModelSource, file_name: str, file: IO[bytes]) -> dict[str, Tensor]:
    file.seek(0)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"Model {source.uri!r}: {file_name} is refused: it carries code that unpickling would run, or is no "
            f"checkpoint. Convert it to safetensors where you trust it. ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"Model {source.uri!r}: {file_name} cannot be read ({error}). Copy the file again."
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"Model {source.uri!r}: {file_name} holds a {type(loaded).__name__}; tensors by name expected."
        )
    return {name: one for name, one in loaded.items() if isinstance(one, Tensor) and one.layout == torch.strided}


def _located(file_name: str, tensor: Tensor) -> StoredTensor:
    storage: Any = tensor.untyped_storage()
    first_byte = storage._checkpoint_offset + tensor.storage_offset() * tensor.dtype.itemsize
    return StoredTensor(file_name, tensor.dtype, tuple(tensor.shape), first_byte)
