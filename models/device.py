"""Memory for keys and values: how much is free, and which errors mean that it ran out. It knows no request."""

from pathlib import Path

import torch

from batchloom.models.footprint import CACHE_SHARE
from batchloom.models.generation.model import GenerativeModel
from batchloom.models.ranks.calls import Call


def bytes_per_token(model: GenerativeModel) -> int:
    """Return the bytes of one token's keys and values in all decoder layers; an encoder's tokens take as many."""
    return 2 * model.num_layers * model.num_heads * model.head_dim * model.dtype.itemsize


def max_cached_tokens(model: GenerativeModel) -> int:
    """Return how many tokens' keys and values fit into the memory that is free now, on the rank with the least."""
    with model.group.collective_call(Call.MAX_CACHED_TOKENS):
        free = free_bytes(model.device) * CACHE_SHARE.get(model.device.type, 0.5)
        if model.device.type == "cpu":
            free /= model.group.size  # ranks share the machine's memory
        # All ranks hold the same requests, so the one with the least memory decides.
        return model.group.all_reduce_min(max(1, int(free / bytes_per_token(model))))


def free_bytes(device: torch.device) -> int:
    """Return the bytes that may still be allocated: on the device, or in the machine within the container's limit."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.get_per_process_memory_fraction(device) * total - torch.cuda.memory_reserved(device)
        return max(0, int(min(free, own)))
    return min(_machine_bytes(), _group_bytes())


def limit_to_share(share: float) -> None:
    """Let this process allocate no more than a share of its GPU's memory: other processes have the rest."""
    torch.cuda.set_per_process_memory_fraction(share)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that an allocation failed; torch's CPU allocator says so only in the message."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _machine_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux: any machine of today has this much
        return 4 << 30
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def _group_bytes() -> int:
    """Return what the container's limit leaves; practically unlimited where there is none."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return 1 << 62
    return 1 << 62 if limit == "max" else max(0, int(limit) - used)
