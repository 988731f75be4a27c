"""Which paged attention runs on a device: the fused kernel where Triton works, plain torch elsewhere."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from batchloom.models.generation.memory.gpu.attention import BlockReader, BlockReads
from batchloom.models.generation.memory.gpu.blocks import BlockStore

logger = logging.getLogger(__name__)

Reader = Callable[[BlockStore, BlockReads, Tensor, Tensor | None], BlockReader]


def reader_on(device: torch.device) -> Reader:
    """Return what reads blocks on this device.

    Triton comes with torch for GPUs, but compiles a small launcher with the machine's C compiler, so it is tried out.
    """
    if device.type != "cuda":
        return BlockReader
    try:
        from batchloom.models.generation.memory.gpu.fused import FusedReader, try_out

        try_out(device)
    except Exception as error:  # of Triton, its compiler, the C compiler, the driver: all mean that it cannot be used
        logger.warning(
            "attention runs in plain torch, several times slower, since Triton does not work here (%s: %s); "
            "it needs the package triton and a C compiler",
            type(error).__name__,
            str(error).strip().split("\n")[0],
        )
        return BlockReader
    return FusedReader
