"""Kernels of Triton, where it works; they know no layer and no search."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)
T = TypeVar("T")


def kernel_or(plain: T, device: torch.device, load: Callable[[], T], without: str) -> T:
    """Return what `load` imports and tries out where the device is a GPU and Triton works, and `plain` elsewhere.

    Triton comes with torch for GPUs, but compiles a small launcher with the machine's C compiler. `without`: what is
    logged where it does not work.
    """
    if device.type != "cuda":
        return plain
    try:
        kernel = load()
        torch.cuda.synchronize(device)
    except Exception as error:  # of Triton, its compiler, the C compiler, the driver: all mean that it cannot be used
        logger.warning(
            "%s, since Triton does not work here (%s: %s); it needs the package triton and a C compiler",
            without,
            type(error).__name__,
            str(error).strip().split("\n")[0],
        )
        return plain
    return kernel
