"""How a model is divided among ranks, by counts. It knows no tensor, so that a job can be checked where no torch is."""

from batchloom.models.errors import DeviceError
from batchloom.models.families.config import BartConfig, BloomConfig


def share(count: int, size: int, what: str) -> int:
    """How many of `count` each of `size` ranks holds. Raises DeviceError with fitting sizes where it is not even."""
    if count % size:
        *most, last = (str(fitting) for fitting in range(1, count + 1) if count % fitting == 0)
        listed = f"{', '.join(most)} or {last}" if most else last
        raise DeviceError(f"tensor_parallel = {size} does not divide {count} {what}. Use {listed}.")
    return count // size


def rank_slice(count: int, size: int, rank: int) -> slice:
    """Return the rank's slice of range(count): ceil(count / size) indices each, the last ranks fewer or none."""
    most = -(-count // size)
    return slice(min(rank * most, count), min((rank + 1) * most, count))


def check_ranks(config: BartConfig | BloomConfig, size: int) -> None:
    """Raises DeviceError where a configuration's heads or feed-forwards cannot be divided among `size` ranks."""
    if size < 1:
        raise DeviceError(f"tensor_parallel = {size} must be a whole number of at least 1.")
    if isinstance(config, BloomConfig):
        share(config.n_head, size, "attention heads")
        return
    for heads in (config.encoder_attention_heads, config.decoder_attention_heads):
        share(heads, size, "attention heads")
    for width in (config.encoder_ffn_dim, config.decoder_ffn_dim):
        share(width, size, "feed-forward columns")
