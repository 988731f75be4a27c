"""The tensor-parallel group: which rank this is, how many there are, and the two sums they need. It knows no model.

With one rank every operation is the identity and torch.distributed is never touched, so layers call it unconditionally.
Column-parallel weights are cut along their output rows, row-parallel weights along their input columns:

    x_ND --ColumnLinear--> [N, F / size] --activation--> --RowLinear--> all_reduce --> + bias (once, after the sum)
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from models.errors import DeviceError


@dataclass(frozen=True)
class Part:
    """What a rank holds of one tensor of the checkpoint."""

    where: tuple[slice, ...]  # by dimension, from the first; none means the whole tensor
    whole_shape: tuple[int, ...]  # the tensor's shape in the file


@dataclass(frozen=True, kw_only=True)
class TensorParallel:
    """The ranks that hold one model together."""

    rank: int = 0
    size: int = 1
    process_group: dist.ProcessGroup | None = None  # None: the default group of torch.distributed

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.process_group)
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors side by side along the last dimension: [..., V] -> [..., V * size]."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.process_group)
        return torch.cat(parts, dim=-1)

    def share(self, count: int, what: str) -> int:
        """How many of `count` each rank holds. Raises DeviceError, naming fitting sizes, where it cannot be divided."""
        if count % self.size:
            fitting = ", ".join(str(size) for size in range(1, count + 1) if count % size == 0)
            raise DeviceError(f"tensor_parallel = {self.size} does not divide {count} {what}. Use one of: {fitting}.")
        return count // self.size


SINGLE = TensorParallel()


def tensor_parallel_group(size: int) -> TensorParallel:
    """The group of `size` ranks that this process belongs to. Raises DeviceError where the processes are not there."""
    if size == 1:
        return SINGLE
    found = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 0
    if found != size:
        raise DeviceError(
            f"tensor_parallel = {size} needs {size} processes joined by torch.distributed; "
            f"{found or 'none'} found. Start the ranks first (a pipeline's replica does it) or use tensor_parallel = 1."
        )
    return TensorParallel(rank=dist.get_rank(), size=size)
