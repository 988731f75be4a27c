"""Split token lists that are longer than the model's positions into windows. It knows no task and no model.

10 tokens, windows of 4, overlap 1      [0, 4) [3, 7) [6, 10)
"""

from collections.abc import Iterator

# BLOOM's positions are unlimited, but its training sequences had 2048 tokens: beyond that its answers get worse, and
# attention over a whole book would not fit into memory.
BLOOM_WINDOW = 2048


def window_size(limit: int | None) -> int:
    """Return how many tokens are read at once, special tokens included; `limit`: None where there is none."""
    return BLOOM_WINDOW if limit is None else limit


def windows(num_tokens: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of at most `size` tokens that cover all tokens; neighbours share `overlap` tokens."""
    start = 0
    while start + size < num_tokens:
        yield start, start + size
        start += size - overlap
    yield start, num_tokens
