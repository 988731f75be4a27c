"""The activity of a replica: what its model did since it was loaded, and what it holds now."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Sums since the model was loaded, then what is held now. Heads without a decode loop hold nothing."""

    busy_seconds: float
    """In which the model computed."""
    num_steps: int
    """Or batches: while it grows, the replica is alive."""
    num_prompt_tokens: int
    num_padded_tokens: int
    """Positions that were computed for these prompt tokens, padding included."""
    num_output_tokens: int = 0
    num_running_sequences: int = 0
    num_waiting_requests: int = 0
    num_cached_tokens: int = 0
    """Whose keys and values are held or reserved."""
    max_cached_tokens: int = 0
    """That memory holds."""
    num_blocks: int = 0
    """Of the KV cache, in use. Only on GPUs is it made of blocks."""
    max_blocks: int = 0
    """That are allocated."""

    def measures(self) -> dict[str, float]:
        """Return what units carry to the driver."""
        return {
            "engine_busy_seconds": self.busy_seconds,
            "engine_prompt_tokens": self.num_prompt_tokens,
            "engine_padded_tokens": self.num_padded_tokens,
            "engine_output_tokens": self.num_output_tokens,
            "engine_steps": self.num_steps,
        }
