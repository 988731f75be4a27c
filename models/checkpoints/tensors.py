"""The tensors of a checkpoint: names, shapes and slices of rows over all its weight files. It knows no model."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from batchloom.models.checkpoints.files import StoredTensor, read_index
from batchloom.models.checkpoints.hub import ModelSource
from batchloom.models.checkpoints.info import weight_files
from batchloom.models.checkpoints.weight_file import WeightFile, read_bytes
from batchloom.models.errors import CheckpointError
from batchloom.models.families.tensor_names import LAYOUT, SCALE

# Tensors are read in pieces of this size, so that loading never holds much more than the model itself.
PIECE_BYTES = 32 * 1024 * 1024
ALL = slice(None)


class Checkpoint:
    """All tensors of a model's weight files, read on demand."""

    def __init__(self, source: ModelSource) -> None:
        """Raises: CheckpointError where there are no weights, a file is damaged, or is not the pinned one."""
        self.source = source
        self._files = {file.name: file for file in weight_files(source)}
        with ThreadPoolExecutor(max_workers=8) as pool:  # hashlib releases the GIL
            list(pool.map(WeightFile.check_pinned, self._files.values()))
        self.tensors: dict[str, StoredTensor] = {}
        for file in self._files.values():
            self.tensors.update(read_index(file))
        self.scales = {name: scale for name in self.tensors if (scale := self._scale_of(name)) is not None}
        """The tensors with the scales of int8 weights' rows, by the weights' names."""
        for name in self.scales:
            self._check_layout(name)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype of most of the bytes; float32 where there is none."""
        num_bytes: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            if tensor.dtype.is_floating_point:
                num_bytes[tensor.dtype] = num_bytes.get(tensor.dtype, 0) + tensor.num_bytes
        return max(num_bytes, key=lambda dtype: num_bytes[dtype], default=torch.float32)

    def check_unchanged(self) -> None:
        """Raises: CheckpointError where a file was written to or replaced since it was opened."""
        for file in self._files.values():
            file.check_unchanged()

    def read_into(self, target: Tensor, name: str, rows: slice = ALL) -> None:
        """Read a slice of a tensor's rows into `target`, cast to its dtype. Raises: KeyError for an unknown name."""
        filled = 0
        for piece in self.pieces(name, rows):
            values = self.read(name, piece)
            target[filled : filled + len(values)].copy_(values)
            filled += len(values)

    def equal(self, name: str, other: str, rows: slice = ALL) -> bool:
        """Return whether two tensors have the same shape and the same values in a slice of rows, piece by piece."""
        one, two = self.tensors[name], self.tensors[other]
        if one.shape != two.shape:
            return False
        if one.value is None and (one.file_name, one.first_byte) == (two.file_name, two.first_byte):
            return True  # a pickle stores a tied matrix once under two names
        pieces = self.pieces(name, rows)
        return all(torch.equal(self.read(name, piece), self.read(other, piece)) for piece in pieces)

    def pieces(self, name: str, rows: slice = ALL) -> list[slice]:
        """Split a slice of a tensor's rows into slices that fit PIECE_BYTES."""
        stored = self.tensors[name]
        first, stop, _ = rows.indices(stored.num_rows)
        step = max(1, PIECE_BYTES // max(1, stored.row_bytes))
        return [slice(row, min(row + step, stop)) for row in range(first, stop, step)]

    def read(self, name: str, rows: slice) -> Tensor:
        """Read a slice of a tensor's rows in the file's dtype, in float32 where it is quantized.

        Raises: KeyError for an unknown name.
        """
        values = self._stored(name, rows)
        if name not in self.scales:
            return values
        scale_M = self._stored(self.scales[name], rows).float()  # bitsandbytes: a row's largest magnitude stands at 127
        return values.float() * (scale_M / 127)[:, None]

    def _scale_of(self, name: str) -> str | None:
        """Return the name of the scales of a tensor that bitsandbytes quantized, None for any other."""
        tensor, scale = self.tensors[name], f"{name.removesuffix('weight')}{SCALE}"
        is_int8 = tensor.dtype == torch.int8 and len(tensor.shape) == 2 and name.endswith(".weight")
        return scale if is_int8 and scale in self.tensors and self.tensors[scale].shape == tensor.shape[:1] else None

    def _check_layout(self, name: str) -> None:
        """Raises: CheckpointError where an int8 weight's rows are not one after the other, as on old GPUs."""
        layout = f"{name.removesuffix('weight')}{LAYOUT}"
        if layout in self.tensors and int(self._stored(layout, slice(0, 1)).flatten()[0]):
            raise CheckpointError(
                f"Model {self.source.uri!r}: {name} has the int8 layout of one kind of GPU. Load the checkpoint with "
                "transformers and bitsandbytes, and save it again."
            )

    def _stored(self, name: str, rows: slice) -> Tensor:
        """Read a slice of a tensor's rows as they stand in the file."""
        stored = self.tensors[name]
        if stored.value is not None:
            return stored.value.reshape(stored.num_rows, *stored.shape[1:])[rows]
        start, stop = (stored.first_byte + row * stored.row_bytes for row in (rows.start, rows.stop))
        raw = read_bytes(self._files[stored.file_name], start, stop)
        return torch.from_numpy(raw).view(stored.dtype).view(rows.stop - rows.start, *stored.shape[1:])
