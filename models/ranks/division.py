"""How a model is divided among ranks. It imports no torch, so that a job can be checked before anything starts."""

from batchloom.models.errors import DeviceError
from batchloom.models.families.config import ModelConfig


def share(count: int, size: int, what: str) -> int:
    """Return how many of `count` each of `size` ranks holds. Raises DeviceError, listing the divisors, if uneven."""
    if count % size:
        *most, last = (str(fitting) for fitting in range(1, count + 1) if count % fitting == 0)
        listed = f"{', '.join(most)} or {last}" if most else last
        raise DeviceError(f"tensor_parallel = {size} does not divide {count} {what}. Use {listed}.")
    return count // size


def rank_slice(count: int, size: int, rank: int) -> slice:
    """Return the rank's slice of range(count): ceil(count / size) indices each, the last ranks fewer or none."""
    most = -(-count // size)
    return slice(min(rank * most, count), min((rank + 1) * most, count))


def check_ranks(config: ModelConfig, size: int) -> None:
    """Raise DeviceError where a configuration's heads or feed-forwards cannot be divided among `size` ranks."""
    if size < 1:
        raise DeviceError(f"tensor_parallel = {size} must be a whole number of at least 1.")
    for stack in config.stacks:
        share(stack.num_heads, size, "attention heads")
    for stack in config.stacks:
        share(stack.inner_width, size, "feed-forward columns")
