"""Which paged attention runs on a device: the fused kernel where Triton works, plain torch elsewhere."""

from collections.abc import Callable

import torch
from torch import Tensor

from batchloom.models.generation.memory.gpu.attention import BlockReader, BlockReads
from batchloom.models.generation.memory.gpu.blocks import BlockStore
from batchloom.models.kernels import kernel_or

Reader = Callable[[BlockStore, BlockReads, Tensor, Tensor | None], BlockReader]


def reader_on(device: torch.device) -> Reader:
    """Return what reads blocks on this device."""

    def load() -> Reader:
        from batchloom.models.generation.memory.gpu.fused import FusedReader, try_out

        try_out(device)
        return FusedReader

    plain: Reader = BlockReader
    return kernel_or(plain, device, load, without="attention runs in plain torch, several times slower")
