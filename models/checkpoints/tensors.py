"""The tensors of a checkpoint: names, shapes and slices over its weight files. It knows files, no model."""

import torch
from torch import Tensor

from batchloom.models.checkpoints.files import StoredTensor, read_bytes, read_index
from batchloom.models.checkpoints.hub import ModelSource
from batchloom.models.checkpoints.info import weight_file_names

# Read in pieces, so that loading never holds much more than the model itself.
PIECE_BYTES = 32 * 1024 * 1024
ALL = slice(None)


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

    def read_into(self, target: Tensor, name: str, rows: slice = ALL) -> None:
        """Fills `target` with a run of a tensor's rows, cast to the target's dtype."""
        filled = 0
        for piece in self.pieces(name, rows):
            values = self.read(name, piece)
            target[filled : filled + len(values)].copy_(values)
            filled += len(values)

    def equal(self, name: str, other: str, rows: slice = ALL) -> bool:
        """Whether two tensors have one shape and hold the same values in a run of rows, compared piece by piece."""
        one, two = self.tensors[name], self.tensors[other]
        if one.shape != two.shape:
            return False
        if one.value is None and (one.file_name, one.first_byte) == (two.file_name, two.first_byte):
            return True  # a pickle stores a tied matrix once, under two names
        pieces = self.pieces(name, rows)
        return all(torch.equal(self.read(name, piece), self.read(other, piece)) for piece in pieces)

    def pieces(self, name: str, rows: slice = ALL) -> list[slice]:
        """A run of a tensor's rows as runs that fit PIECE_BYTES."""
        stored = self.tensors[name]
        first, stop, _ = rows.indices(stored.num_rows)
        step = max(1, PIECE_BYTES // max(1, stored.row_bytes))
        return [slice(row, min(row + step, stop)) for row in range(first, stop, step)]

    def read(self, name: str, rows: slice) -> Tensor:
        """A run of a tensor's rows in the file's dtype."""
        stored = self.tensors[name]
        if stored.value is not None:
            return stored.value.reshape(stored.num_rows, *stored.shape[1:])[rows]
        start, stop = (stored.first_byte + row * stored.row_bytes for row in (rows.start, rows.stop))
        raw = read_bytes(self.source, stored.file_name, start, stop)
        return torch.from_numpy(raw).view(stored.dtype).view(rows.stop - rows.start, *stored.shape[1:])
