"""How much memory there is for keys and values, and whether an error says there was not. It knows no request."""

import ctypes
from pathlib import Path
from typing import Any

import torch

from batchloom.models.footprint import CACHE_SHARE
from batchloom.models.ranks.calls import Call


def bytes_per_token(model: Any) -> int:
    """Keys and values of one token in all decoder layers; a source token of an encoder-decoder takes as much."""
    return int(2 * model.num_layers * model.num_heads * model.head_dim * model.dtype.itemsize)


def max_cached_tokens(model: Any) -> int:
    """Tokens whose keys and values fit in the memory that is free now."""
    with model.group.collective_call(Call.MAX_CACHED_TOKENS):
        free = free_bytes(model.device) * CACHE_SHARE.get(model.device.type, 0.5)
        if model.device.type == "cpu":
            free /= model.group.size  # ranks share the machine's memory
        # All ranks hold the same requests: the one with the least room decides.
        return model.group.all_reduce_min(max(1, int(free / bytes_per_token(model))))


def free_bytes(device: torch.device) -> int:
    """Memory that may still be taken: the device's, or the machine's within this process's control group."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return min(_machine_bytes(), _group_bytes())


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed; a CPU's allocator says so only in words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def keep_freed_memory() -> None:
    """Tells the C allocator to keep what is freed; the system would take large blocks back, and clear them anew.

    A step frees and takes the same tens of megabytes; page faults were a tenth of its time. Only glibc understands.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc accepts
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    except (OSError, AttributeError):
        return


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of malloc.h


def _machine_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # no Linux: a guess that any machine of today can keep
        return 4 << 30
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def _group_bytes() -> int:
    """What a container's limit leaves."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return 1 << 62
    return 1 << 62 if limit == "max" else max(0, int(limit) - used)
