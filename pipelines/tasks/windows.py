"""Windows over token lists that are longer than the model reads at once. It knows no task and no model.

10 tokens, windows of 4, overlap 1      [0, 4) [3, 7) [6, 10)
"""

from collections.abc import Iterator

# BLOOM's positions have no end, but its training texts had: beyond them its answers are worth less, and attention over
# a whole book would not fit into any memory.
BLOOM_WINDOW = 2048


def window_size(max_positions: int | None) -> int:
    """Tokens that the model reads at once, special tokens included."""
    return BLOOM_WINDOW if max_positions is None else max_positions


def windows(num_tokens: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `size` tokens that cover all of them; neighbours share `overlap` tokens."""
    start = 0
    while start + size < num_tokens:
        yield start, start + size
        start += size - overlap
    yield start, num_tokens
