"""Attention over packed sequences, and the contexts that know the sequences' boundaries. It knows no weights.

Legend of tensor names, everywhere in models:
    N packed tokens, all sequences concatenated            M some of those tokens
    B sequences            T query tokens                  S key tokens
    D model width          H heads of this rank            K head width
    F feed-forward width   V vocabulary of this rank       L labels
    G sequences of one group (one call of the kernel)      P packed tokens, groups padded
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from batchloom.models.layers.grouped_attention import DeviceGroups, GroupedAttention
from batchloom.models.layers.kernel_attention import KernelAttention
from batchloom.models.layers.layout import computes_in
from batchloom.models.layers.positions import positions_of
from batchloom.models.layers.product_attention import ProductAttention
from batchloom.models.transfers import to_device

# ALiBi is computed by extra columns of q and k. Eight, because kernels need head widths that are multiples of eight.
ALIBI_COLUMNS = 8
# The value of q's extra columns: a power of two, so exact, and large, so that float16 holds k's to position 50,000.
ALIBI_QUERY = 8.0

Plan = GroupedAttention | ProductAttention | KernelAttention


class AttentionContext(Protocol):
    """Computes attention for a layer. The model's caller chooses the implementation: documents, a KV cache, beams.

    q comes unscaled: the context applies head_dim ** -0.5, and nobody else does.
    """

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        """Return the self-attention of the new tokens: [N, H, K]."""
        ...

    def cross_attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        """Return the attention of the new tokens over their encoder's keys and values: [N, H, K]."""
        ...


@dataclass(frozen=True)
class EncoderMemory:
    """What a decoder cross-attends to: packed keys and values [N, H, K] of the encoder's output, per decoder layer."""

    lengths: Sequence[int]
    keys_values: Sequence[tuple[Tensor, Tensor]]


class PackedAttention:
    """The context of one forward over whole sequences, without a KV cache: encoders, prefill, scoring.

    `lengths` are the sequences' numbers of tokens, in packed order. With `causal`, a token attends to itself and those
    before it. `alibi_slopes` (float32 [H]) adds slope * key position to the scores. `cross` is for decoders that
    cross-attend. `query_lengths`: how many tokens of each sequence are queries; all by default. `cross_query_lengths`:
    how many queries read each of the encoder's sequences, where several sequences read one.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        causal: bool,
        alibi_slopes: Tensor | None = None,
        cross: EncoderMemory | None = None,
        query_lengths: Sequence[int] | None = None,
        cross_query_lengths: Sequence[int] | None = None,
    ) -> None:
        self.lengths, self.causal, self.alibi_slopes, self.cross = list(lengths), causal, alibi_slopes, cross
        self.query_lengths = self.lengths if query_lengths is None else list(query_lengths)
        self.cross_query_lengths = self.query_lengths if cross_query_lengths is None else list(cross_query_lengths)
        self._self_plan: Plan | None = None
        self._cross_plan: Plan | None = None
        self._alibi_columns: Tensor | None = None

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:  # noqa: ARG002
        if self.alibi_slopes is not None:
            return self._attend_with_alibi(q_NHK, k_NHK, v_NHK)
        plan = self.plan(q_NHK.device, q_NHK.dtype, q_NHK.shape[-1])
        return plan(q_NHK, k_NHK, v_NHK, scale=q_NHK.shape[-1] ** -0.5)

    def cross_attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        assert self.cross is not None, "this context was made without an encoder"
        if self._cross_plan is None:
            kind = _kind_of_plan(q_NHK.device, q_NHK.dtype, q_NHK.shape[-1])
            self._cross_plan = kind(self.cross_query_lengths, self.cross.lengths, False)
        k_SHK, v_SHK = self.cross.keys_values[layer]
        return self._cross_plan(q_NHK, k_SHK, v_SHK, scale=q_NHK.shape[-1] ** -0.5)

    def plan(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> Plan:
        """Return how self-attention is computed for tensors of a device, dtype and head width; made once."""
        if self._self_plan is None:
            kind = _kind_of_plan(device, dtype, head_dim)
            if self.alibi_slopes is not None and kind is ProductAttention:
                kind = GroupedAttention  # slope * position outgrows what bfloat16 tells of a row's largest
            self._self_plan = kind(self.query_lengths, self.lengths, self.causal)
        return self._self_plan

    @property
    def num_padded_tokens(self) -> int:
        """Key positions that self-attention computes, padding included once the plan is made (at the first layer)."""
        return sum(self.lengths) if self._self_plan is None else self._self_plan.num_positions

    def last_tokens(self, device: torch.device) -> Tensor:
        """Return the index of each sequence's last token among the packed tokens: [B]."""
        return to_device([end - 1 for end in accumulate(self.lengths)], device)

    def last(self) -> "PackedAttention":
        """Return a context whose only queries are the sequences' last tokens: q is [B, H, K], keys are all tokens'."""
        # The last token attends to all others, so the causal mask has no effect.
        return PackedAttention(self.lengths, False, self.alibi_slopes, self.cross, [1] * len(self.lengths))

    def _attend_with_alibi(self, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        """Attend with ALiBi as part of the dot product, without a bias tensor, so that causal kernels can be used:

            [q, 8, 8, 8] . [k, hi, mid, lo] * scale = q . k * scale + slope * position

        hi + mid + lo is slope * position / (8 scale) split into three values of the dtype: 24 bits also in bfloat16.
        Scores get slope * key position, not slope * distance: the softmax is the same (arXiv 2108.12409, section 3).
        """
        head_dim = q_NHK.shape[-1]
        if self._alibi_columns is None:
            self._alibi_columns = self._make_alibi_columns(k_NHK, scale=head_dim**-0.5)
        asking_NHA = q_NHK.new_zeros(*q_NHK.shape[:2], ALIBI_COLUMNS)
        asking_NHA[..., :3] = ALIBI_QUERY
        wide_v_NHK = F.pad(v_NHK, (0, ALIBI_COLUMNS))  # the fast kernels want one width for all three
        attended_NHK = self.plan(q_NHK.device, q_NHK.dtype, head_dim + ALIBI_COLUMNS)(
            torch.cat((q_NHK, asking_NHA), dim=-1),
            torch.cat((k_NHK, self._alibi_columns), dim=-1),
            wide_v_NHK,
            scale=head_dim**-0.5,
        )
        return attended_NHK[..., :head_dim]

    def _make_alibi_columns(self, k_NHK: Tensor, scale: float) -> Tensor:
        assert self.alibi_slopes is not None
        positions_N = positions_of(self.lengths, k_NHK.device).float()
        rest_NH = positions_N[:, None] * self.alibi_slopes.to(k_NHK.device) / (scale * ALIBI_QUERY)
        columns_NHA = k_NHK.new_zeros(*k_NHK.shape[:2], ALIBI_COLUMNS)
        for column in range(3):
            columns_NHA[..., column] = rest_NH.to(k_NHK.dtype)
            rest_NH = rest_NH - columns_NHA[..., column].float()
        return columns_NHA


def _kind_of_plan(device: torch.device, dtype: torch.dtype, head_dim: int) -> type[Plan]:
    """Return which attention is fastest for tensors of a device, dtype and head width."""
    if KernelAttention.is_for(device, dtype, head_dim):
        return KernelAttention
    if device.type != "cpu":
        return DeviceGroups
    return ProductAttention if dtype == torch.bfloat16 and computes_in(dtype) else GroupedAttention
