"""Kernels of Triton, where it works; they know no layer and no search."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)
T = TypeVar("T")
_is_for_graph = ContextVar("is_for_graph", default=False)  # of one thread: others go on launching on their own


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


@contextmanager
def for_a_graph() -> Iterator[None]:
    """Say that what this thread launches within is captured, or is the warm-up before it.

    The host launches it once, however often the graph is replayed, so a kernel pays there whatever its size. The
    warm-up must launch the very kernels that are captured: none can be compiled or loaded while a stream captures.
    """
    before = _is_for_graph.set(True)
    try:
        yield
    finally:
        _is_for_graph.reset(before)


def launches_are_free() -> bool:
    """Return whether this thread is within `for_a_graph`."""
    return _is_for_graph.get()
