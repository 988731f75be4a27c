"""The layout of one weight file: safetensors, or a .bin pickle that holds tensors and nothing else. It knows no model.

A safetensors file is eight bytes with the header's length, the header (JSON: name -> dtype, shape, byte range), then
the tensors' bytes. A .bin file is an uncompressed zip: a pickle with the names, and a member for each tensor. So in
both, any slice of rows is one byte range, on a disk or in an object store.
"""

import math
import pickle
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from batchloom.models.checkpoints.weight_file import WeightFile
from batchloom.models.errors import CheckpointError

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


def read_index(file: WeightFile) -> dict[str, StoredTensor]:
    """Return the tensors of one weight file by name, without reading their bytes where the format allows it.

    Raises: CheckpointError where the file is damaged, holds code, or has a dtype that is not in DTYPES.
    """
    if not file.name.endswith(".safetensors"):
        return _read_pickle(file)
    return {
        name: StoredTensor(file.name, DTYPES[entry.dtype], entry.shape, entry.first_byte)
        for name, entry in file.header().items()
    }


def _read_pickle(weights: WeightFile) -> dict[str, StoredTensor]:
    """Return a .bin file's tensors. weights_only unpickles tensors and plain values, and refuses everything else."""
    weights.check_whole()
    with weights.open() as file:
        if file.read(4) == b"PK\x03\x04":
            # Fake tensors have shapes and no memory: only the pickle itself is read.
            with FakeTensorMode():
                fakes = _unpickle(weights, file)
            if all(tensor.is_contiguous() for tensor in fakes.values()):
                return {name: _located(weights.name, tensor) for name, tensor in fakes.items()}
        # Saved before torch 1.6, or with transposed tensors, as some conversions do: no byte ranges, so read it whole.
        values = _unpickle(weights, file)
    return {name: StoredTensor(weights.name, one.dtype, tuple(one.shape), value=one) for name, one in values.items()}


def _unpickle(weights: WeightFile, file: IO[bytes]) -> dict[str, Tensor]:
    file.seek(0)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"Model {weights.source.uri!r}: {weights.name} is refused: it carries code that unpickling would run, or "
            f"is no checkpoint. Convert it to safetensors where you trust it. ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"Model {weights.source.uri!r}: {weights.name} cannot be read ({error}). Copy the file again."
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"Model {weights.source.uri!r}: {weights.name} holds a {type(loaded).__name__}; tensors by name expected."
        )
    return {name: one for name, one in loaded.items() if isinstance(one, Tensor) and one.layout == torch.strided}


def _located(file_name: str, tensor: Tensor) -> StoredTensor:
    storage: Any = tensor.untyped_storage()
    first_byte = storage._checkpoint_offset + tensor.storage_offset() * tensor.dtype.itemsize
    return StoredTensor(file_name, tensor.dtype, tuple(tensor.shape), first_byte)
