"""The tensors of a checkpoint: names, shapes and slices over its weight files. It knows files, no model."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from models.checkpoint_info import weight_file_names
from models.hub import ModelSource
from models.weight_files import StoredTensor, read_bytes, read_index

# Read in pieces, so that loading never holds much more than the model itself.
PIECE_BYTES = 32 * 1024 * 1024


class Checkpoint:
    """All tensors of a model's weight files, read on demand."""

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.tensors: dict[str, StoredTensor] = {}
        for file_name in weight_file_names(source):
            self.tensors.update(read_index(source, file_name))

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
        one, two = self.tensors[name], self.tensors[other]
        if one.shape != two.shape:
            return False
        if one.value is None and (one.file_name, one.first_byte) == (two.file_name, two.first_byte):
            return True  # a pickle stores a tied matrix once, under two names
        pairs = zip(self._pieces(name, ()), self._pieces(other, ()), strict=True)
        return all(torch.equal(piece, other_piece) for (_, piece), (_, other_piece) in pairs)

    def _pieces(self, name: str, where: tuple[slice, ...]) -> Iterator[tuple[int, Tensor]]:
        """The slice in pieces of rows that fit PIECE_BYTES, each with its first row in the slice."""
        stored = self.tensors[name]
        if stored.value is not None:
            yield 0, stored.value[where]
            return
        shape = stored.shape or (1,)
        first, stop, _ = (where[0] if where else slice(None)).indices(shape[0])
        row_bytes = math.prod(shape[1:]) * stored.dtype.itemsize
        step = max(1, PIECE_BYTES // max(1, row_bytes))
        for row in range(first, stop, step):
            num_rows = min(step, stop - row)
            start = stored.first_byte + row * row_bytes
            raw = read_bytes(self.source, stored.file_name, start, start + num_rows * row_bytes)
            piece = torch.from_numpy(raw).view(stored.dtype).view(num_rows, *shape[1:])
            yield row - first, piece[(slice(None), *where[1:])]
