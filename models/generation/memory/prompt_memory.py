"""Keys and values of prompt tokens, and attention over them. It knows no tokens, no request and no pool."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PromptMemory:
    """Keys and values [H, S, K] of S prompt tokens in each decoder layer, read by any number of sequences at once.

    They are an encoder's output (cross-attention) or what a decoder-only model read (self-attention), written once and
    never moved. `alibi_H1S`: slope * (position - end), where the model has ALiBi.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    num_tokens: int
    alibi_H1S: Tensor | None = None
    end: int = 0
    """The first position after these tokens."""

    @cached_property
    def addresses_L2(self) -> Tensor:
        """Where the keys and values of each layer lie, for kernels that take many memories in one call."""
        assert all(one.is_contiguous() for both in self.layers for one in both), "kernels read them as they are written"
        return torch.tensor([[k_HSK.data_ptr(), v_HSK.data_ptr()] for k_HSK, v_HSK in self.layers], dtype=torch.long)

    def attend(self, layer: int, q_HNK: Tensor) -> Tensor:
        """Return the attention of N scaled queries over all keys: [H, N, K]."""
        k_HSK, v_HSK = self.layers[layer]
        return torch.bmm(self._scores(q_HNK, k_HSK).softmax(-1), v_HSK)

    def attend_in_part(self, layer: int, q_HNK: Tensor) -> tuple[Tensor, Tensor]:
        """As attend, with the log-sum-exp of the scores [H, N], by which partial results are merged."""
        k_HSK, v_HSK = self.layers[layer]
        return attend_in_part(self._scores(q_HNK, k_HSK), v_HSK)

    def _scores(self, q_HNK: Tensor, k_HSK: Tensor) -> Tensor:
        k_HKS = k_HSK.transpose(1, 2)
        return torch.bmm(q_HNK, k_HKS) if self.alibi_H1S is None else torch.baddbmm(self.alibi_H1S, q_HNK, k_HKS)


def attend_in_part(scores_HTS: Tensor, v_HSK: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention over some of the keys, [H, T, K], and the log-sum-exp of their scores, float32 [H, T]."""
    weight_HTS = scores_HTS.softmax(-1)
    # exp(largest score) / sum is the largest weight: this gives the log-sum-exp without a second pass of exponentials.
    log_sum_HT = scores_HTS.amax(-1).float() - weight_HTS.amax(-1).float().log()
    return torch.bmm(weight_HTS, v_HSK), log_sum_HT
