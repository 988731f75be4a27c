"""The vocabulary's two ends, token embedding and output head, cut over ranks by rows.

Vocabularies are odd (50265), so each rank holds ceil(vocabulary / size) rows and the last one pads with zeros:

    50265 rows, 2 ranks: rank 0 holds 0..25132, rank 1 holds 25133..50264 and one row of zeros
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchloom.models.layers.layout import lay_out, product
from batchloom.models.layers.linear import frozen
from batchloom.models.ranks.division import run
from batchloom.models.ranks.group import Part, TensorParallel


class VocabularyEmbedding(nn.Module):
    """Token ids to vectors: [N] -> [N, D]; `scale` multiplies the vectors."""

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
            elsewhere_N = (local_N < 0) | (local_N >= self.rows)
            hidden_ND = F.embedding(local_N.masked_fill(elsewhere_N, 0), self.weight)
            hidden_ND = self.group.all_reduce(hidden_ND.masked_fill_(elsewhere_N[:, None], 0))
        return hidden_ND * self.scale if self.scale != 1.0 else hidden_ND

    def parts(self) -> dict[str, Part]:
        rows = run(self.vocab_size, self.group.size, self.group.rank)
        return {"weight": Part((self.vocab_size, self.weight.shape[1]), rows)}


class VocabularyHead(nn.Module):
    """Hidden states to the logits of this rank's tokens, [N, D] -> [N, V]; `whole` gathers those of all ranks.

    All ranks have as many columns; those beyond the last token hold -inf.
    """

    def __init__(self, width: int, vocab_size: int, group: TensorParallel) -> None:
        super().__init__()
        self.vocab_size, self.group = vocab_size, group
        self.rows = -(-vocab_size // group.size)
        self.weight = frozen(self.rows, width)
        self._laid_out: Tensor | None = None

    @property
    def own(self) -> slice:
        """This rank's tokens."""
        return run(self.vocab_size, self.group.size, self.group.rank)

    def forward(self, hidden_ND: Tensor, bias_1V: Tensor | None = None) -> Tensor:
        """`bias_1V`: of all tokens. The product adds it to its sums: a pass of its own takes as long as a top-k."""
        own_bias_V = None if bias_1V is None else bias_1V[0, self.own]
        num_missing = self.rows - (self.own.stop - self.own.start)
        if own_bias_V is not None and num_missing:
            own_bias_V = F.pad(own_bias_V, (0, num_missing))
        logits_NV = product(hidden_ND, self.weight if self._laid_out is None else self._laid_out, own_bias_V)
        logits_NV[:, self.rows - num_missing :] = -torch.inf
        return logits_NV

    def whole(self, logits_NV: Tensor) -> Tensor:
        """The logits of all tokens: [N, vocab_size]."""
        return self.group.all_gather(logits_NV)[:, : self.vocab_size] if self.group.size > 1 else logits_NV

    def lay_out(self) -> None:
        """Called once the weights are read: a copy in the processor's order, as the embedding reads the plain one."""
        self._laid_out = lay_out(self.weight)

    def parts(self) -> dict[str, Part]:
        return {"weight": Part((self.vocab_size, self.weight.shape[1]), self.own)}
