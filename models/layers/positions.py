"""Positions of tokens: learned position embeddings, and ALiBi's slopes. It knows of sequences only their lengths."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchloom.models.layers.linear import frozen
from batchloom.models.transfers import to_device

CPU = torch.device("cpu")


class LearnedPositions(nn.Module):
    """Map positions, which count from 0, to vectors: [N] -> [N, D]. The matrix's first `offset` rows are never read.

    BART's matrix has two such rows, a relic of fairseq, which counted positions from padding_idx + 1.
    """

    def __init__(self, num_positions: int, width: int, offset: int = 0) -> None:
        super().__init__()
        self.offset = offset
        self.weight = frozen(num_positions + offset, width)

    def forward(self, positions_N: Tensor) -> Tensor:
        return F.embedding(positions_N + self.offset if self.offset else positions_N, self.weight)


def positions_of(lengths: Sequence[int], device: torch.device = CPU) -> Tensor:
    """Return positions that count from 0 in each sequence: lengths 2, 3 -> [0, 1, 0, 1, 2]."""
    lengths_B = to_device(lengths, device)
    num_tokens = sum(lengths)
    starts_N = (lengths_B.cumsum(0) - lengths_B).repeat_interleave(lengths_B, output_size=num_tokens)
    return torch.arange(num_tokens, device=device) - starts_N


def alibi_slopes(num_heads: int) -> Tensor:
    """Return ALiBi's slope for each head, float32 [num_heads]; num_heads need not be a power of two.

    With p the largest power of two <= num_heads, head i < p has 2 ** (-8 (i + 1) / p); the others have every second
    slope of the series for 2 p heads. Source: Press et al. (arXiv 2108.12409), and the authors' code where num_heads is
    not a power of two.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    # Powers of a rounded base, in float32, as in transformers: at position 2000 the last bit of a slope matters.
    slopes_H = torch.tensor(2 ** (-8 / power)) ** torch.arange(1, power + 1)
    more_H = torch.tensor(2 ** (-8 / (2 * power))) ** torch.arange(1, 2 * (num_heads - power) + 1, 2)
    return torch.cat((slopes_H, more_H))
