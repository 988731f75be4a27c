"""The token embedding and the output head, split over ranks by rows (tokens of the vocabulary).

Vocabulary sizes are odd (50265), so each rank holds ceil(vocabulary / size) rows, and the last one pads with zeros:

    50265 rows, 2 ranks: rank 0 holds 0..25132, rank 1 holds 25133..50264 and one row of zeros
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchloom.models.layers.layout import Weight, lay_out, product
from batchloom.models.layers.linear import frozen
from batchloom.models.ranks.division import rank_slice
from batchloom.models.ranks.group import TensorParallel, TensorSlice

ALIGNMENT = 8  # columns: with another number a GPU's fast kernels cannot be used


class VocabularyEmbedding(nn.Module):
    """Map token ids to vectors, multiplied by `scale`: [N] -> [N, D]."""

    def __init__(self, vocab_size: int, width: int, group: TensorParallel, scale: float = 1.0) -> None:
        super().__init__()
        self.vocab_size, self.group, self.scale = vocab_size, group, scale
        self.rows = -(-vocab_size // group.size)
        self.weight = frozen(self.rows, width)

    def forward(self, input_ids_N: Tensor) -> Tensor:
        if self.group.size == 1:
            hidden_ND = F.embedding(input_ids_N, self.weight)
        else:
            local_N = input_ids_N - self.group.rank * self.rows
            is_other_rank_N = (local_N < 0) | (local_N >= self.rows)
            hidden_ND = F.embedding(local_N.masked_fill(is_other_rank_N, 0), self.weight)
            hidden_ND = self.group.all_reduce(hidden_ND.masked_fill_(is_other_rank_N[:, None], 0))
        return hidden_ND * self.scale if self.scale != 1.0 else hidden_ND

    def slices(self) -> dict[str, TensorSlice]:
        """Return this rank's slice of the checkpoint's tensor, by parameter."""
        rows = rank_slice(self.vocab_size, self.group.size, self.group.rank)
        return {"weight": TensorSlice((self.vocab_size, self.weight.shape[1]), rows)}


class VocabularyHead(nn.Module):
    """Compute the logits of this rank's tokens: [N, D] -> [N, V]; `whole` gathers those of all ranks.

    V is the same on all ranks; columns past the end of the vocabulary hold -inf.
    """

    def __init__(self, width: int, vocab_size: int, group: TensorParallel) -> None:
        super().__init__()
        self.vocab_size, self.group = vocab_size, group
        self.rows = -(-vocab_size // group.size)
        self.weight = frozen(self.rows, width)
        self._laid_out: Weight | None = None

    @property
    def own(self) -> slice:
        """This rank's tokens."""
        return rank_slice(self.vocab_size, self.group.size, self.group.rank)

    def forward(self, hidden_ND: Tensor, bias_1V: Tensor | None = None) -> Tensor:
        """Return the logits. `bias_1V`: of the whole vocabulary; fused into the product, as a pass of its own would
        take as long as a top-k."""
        own_bias_V = None if bias_1V is None else bias_1V[0, self.own]
        weight_VD = self.weight if self._laid_out is None else self._laid_out
        num_own = self.own.stop - self.own.start
        num_rows = len(weight_VD) if isinstance(weight_VD, Tensor) else self.rows
        if own_bias_V is not None and num_rows > num_own:
            own_bias_V = F.pad(own_bias_V, (0, num_rows - num_own))
        logits_NV = product(hidden_ND, weight_VD, own_bias_V)[:, : self.rows]
        logits_NV[:, num_own:] = -torch.inf
        return logits_NV

    def whole(self, logits_NV: Tensor) -> Tensor:
        """All-gather the logits of the whole vocabulary: [N, V] -> [N, vocab_size]."""
        return self.group.all_gather(logits_NV)[:, : self.vocab_size] if self.group.size > 1 else logits_NV

    def lay_out(self) -> None:
        """Make a copy in the processor's layout, once the weights are read; the embedding uses the plain weight."""
        self._laid_out = lay_out(self.weight)
        if self.weight.device.type == "cuda" and self.group.size == 1:  # ranks gather logits, which must be contiguous
            self._laid_out = aligned(self.weight)

    def slices(self) -> dict[str, TensorSlice]:
        """Return this rank's slice of the checkpoint's tensor, by parameter."""
        return {"weight": TensorSlice((self.vocab_size, self.weight.shape[1]), self.own)}


def aligned(weight_VD: Tensor) -> Tensor | None:
    """Return the weight with rows of zeros up to a multiple of ALIGNMENT, or None where it has one."""
    num_missing = -len(weight_VD) % ALIGNMENT
    return F.pad(weight_VD, (0, 0, 0, num_missing)) if num_missing else None
