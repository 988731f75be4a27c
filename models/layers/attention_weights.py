"""Attention that keeps its weights, by plain softmax, for tasks that write them. It knows no model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from batchloom.models.layers.attention import EncoderMemory, PackedAttention


class AttentionWithWeights(PackedAttention):
    """A PackedAttention that holds the weights of all layers; the kernels of the others never have them whole.

    `weights` and `cross_weights`: by layer and sequence, float32 [H, T, S] of this rank's heads.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        causal: bool,
        alibi_slopes: Tensor | None = None,
        cross: EncoderMemory | None = None,
    ) -> None:
        super().__init__(lengths, causal, alibi_slopes, cross)
        self.weights: list[list[Tensor]] = []
        self.cross_weights: list[list[Tensor]] = []

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:  # noqa: ARG002
        attended_NHK, weights = self._weigh(q_NHK, k_NHK, v_NHK, self.lengths, self.causal)
        self.weights.append(weights)
        return attended_NHK

    def cross_attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        assert self.cross is not None, "this context was made without an encoder"
        attended_NHK, weights = self._weigh(q_NHK, *self.cross.keys_values[layer], self.cross.lengths, causal=False)
        self.cross_weights.append(weights)
        return attended_NHK

    def _weigh(
        self, q_NHK: Tensor, k_SHK: Tensor, v_SHK: Tensor, key_lengths: Sequence[int], causal: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the attention [N, H, K], and its weights [H, T, S] of each sequence."""
        attended, weights = [], []
        parts = q_NHK.split(self.lengths), k_SHK.split(list(key_lengths)), v_SHK.split(list(key_lengths))
        for q_THK, k_SHK_own, v_SHK_own in zip(*parts, strict=True):
            q_HTK, k_HSK, v_HSK = (x.transpose(0, 1).float() for x in (q_THK, k_SHK_own, v_SHK_own))
            scores_HTS = q_HTK @ k_HSK.transpose(1, 2) * q_HTK.shape[-1] ** -0.5
            positions_S = torch.arange(k_HSK.shape[1], device=q_NHK.device)
            if self.alibi_slopes is not None:
                scores_HTS += self.alibi_slopes.to(q_NHK.device)[:, None, None] * positions_S
            if causal:
                scores_HTS.masked_fill_(positions_S > positions_S[:, None], -torch.inf)
            weights.append(scores_HTS.softmax(-1))
            attended.append((weights[-1] @ v_HSK).transpose(0, 1).to(q_NHK.dtype))
        return torch.cat(attended), weights
