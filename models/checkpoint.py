"""The tensors of a checkpoint: names, shapes and slices over its weight files. It knows files, no model.

A safetensors file is eight bytes with the header's length, the header (JSON: name -> dtype, shape, byte range), then
the tensors' bytes. So any slice of rows is one range of bytes, on a disk or in an object store.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.checkpoint_info import weight_file_names
from models.errors import CheckpointError
from models.hub import ModelSource

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
# Read in pieces, so that loading never holds much more than the model itself.
PIECE_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    file_name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    first_byte: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """All tensors of a model's weight files, read on demand."""

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.tensors: dict[str, StoredTensor] = {}
        for file_name in weight_file_names(source):
            self.tensors.update(_read_header(source, file_name))

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype that holds most of the bytes."""
        num_bytes: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            if tensor.dtype.is_floating_point:
                num_bytes[tensor.dtype] = num_bytes.get(tensor.dtype, 0) + tensor.num_bytes
        return max(num_bytes, key=lambda dtype: num_bytes[dtype], default=torch.float32)

    def read_into(self, target: Tensor, name: str, where: tuple[slice, ...] = ()) -> None:
        """Fills `target` with a slice of a tensor (rows, then columns), cast to the target's dtype."""
        for first_row, piece in self._pieces(name, where):
            target[first_row : first_row + len(piece)].copy_(piece)

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same values in the same shape, compared piece by piece."""
        if self.tensors[name].shape != self.tensors[other].shape:
            return False
        pairs = zip(self._pieces(name, ()), self._pieces(other, ()), strict=True)
        return all(torch.equal(piece, other_piece) for (_, piece), (_, other_piece) in pairs)

    def _pieces(self, name: str, where: tuple[slice, ...]) -> Iterator[tuple[int, Tensor]]:
        """The slice in pieces of rows that fit PIECE_BYTES, each with its first row in the slice."""
        stored = self.tensors[name]
        shape = stored.shape or (1,)
        first, stop, _ = (where[0] if where else slice(None)).indices(shape[0])
        row_bytes = math.prod(shape[1:]) * stored.dtype.itemsize
        step = max(1, PIECE_BYTES // max(1, row_bytes))
        for row in range(first, stop, step):
            num_rows = min(step, stop - row)
            start = stored.first_byte + row * row_bytes
            raw = _read_bytes(self.source, stored.file_name, start, start + num_rows * row_bytes)
            piece = torch.from_numpy(raw).view(stored.dtype).view(num_rows, *shape[1:])
            yield row - first, piece[(slice(None), *where[1:])]


def _read_header(source: ModelSource, file_name: str) -> dict[str, StoredTensor]:
    problem = f"Model {source.uri!r}: {file_name} is not a whole safetensors file"
    size = source.filesystem.size(source.weight_path(file_name))
    if size < 8:
        raise CheckpointError(f"{problem}: {size} bytes long. Copy the file again.")
    length = int.from_bytes(_read_bytes(source, file_name, 0, 8).tobytes(), "little")
    if 8 + length > size:
        raise CheckpointError(f"{problem}: its header should end at byte {8 + length}, the file at {size}.")
    try:
        header: dict[str, Any] = json.loads(_read_bytes(source, file_name, 8, 8 + length).tobytes())
    except ValueError as error:
        raise CheckpointError(f"{problem}: {error}. Copy the file again.") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(
                f"Model {source.uri!r}: tensor {name} is stored as {entry['dtype']}; known: {', '.join(DTYPES)}."
            )
        first, end = entry["data_offsets"]
        stored = StoredTensor(file_name, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + first)
        if end - first != stored.num_bytes or 8 + length + end > size:
            raise CheckpointError(
                f"{problem}: tensor {name} should end at byte {8 + length + end}, the file at {size}."
            )
        tensors[name] = stored
    return tensors


def _read_bytes(source: ModelSource, file_name: str, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Bytes of a weight file. Local ones are mapped, copy-on-write: a slice of columns touches its own pages only."""
    path = source.weight_path(file_name)
    if start == stop:
        return np.empty(0, dtype=np.uint8)
    if source.is_local:
        return np.memmap(path, dtype=np.uint8, mode="c", offset=start, shape=(stop - start,))
    # A bytearray is writable, which torch.from_numpy insists on.
    return np.frombuffer(bytearray(source.filesystem.cat_file(path, start=start, end=stop)), dtype=np.uint8)
