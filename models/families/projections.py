"""Attention projections of encoder-decoder families: separate q, k, v and out weights in the checkpoint, all biased.

Attention itself is the context's. Projections of the same input are computed as one matrix product.
"""

import torch
from torch import Tensor, nn

from batchloom.models.layers.attention import AttentionContext
from batchloom.models.layers.layout import Reorder, Weight, lay_out, product
from batchloom.models.layers.linear import ColumnLinear, RowLinear, without_memory
from batchloom.models.ranks.group import TensorParallel


class SelfAttention(nn.Module):
    """Queries, keys and values from one product: the three weights are views of one matrix."""

    fused: tuple[Weight, Tensor]

    def __init__(self, width: int, num_heads: int, group: TensorParallel) -> None:
        super().__init__()
        self.num_heads, self.head_dim = group.share(num_heads, "attention heads"), width // num_heads
        self.q_proj = ColumnLinear(width, width, group)
        self.k_proj = ColumnLinear(width, width, group)
        self.v_proj = ColumnLinear(width, width, group)
        self.out_proj = RowLinear(width, width, group)

    @property
    def linears(self) -> tuple[ColumnLinear, ...]:
        """The projections that are computed as one product with the weight and bias in `fused`."""
        return self.q_proj, self.k_proj, self.v_proj

    def allocate(self, device: torch.device, dtype: torch.dtype, matrix_dtype: torch.dtype | None = None) -> None:
        """Allocate memory for the fused weights. Called once, before they are read."""
        self.fused = fuse(self.linears, device, dtype, matrix_dtype or dtype)

    def forward(self, layer: int, hidden_ND: Tensor, context: AttentionContext) -> Tensor:
        q_NHK, k_NHK, v_NHK = self.project(hidden_ND)
        return self.out_proj(context.attend(layer, q_NHK, k_NHK, v_NHK).flatten(1))

    def ask(self, layer: int, hidden_ND: Tensor, rows_M: Tensor, context: AttentionContext) -> Tensor:
        """Attend with the queries of some rows to the keys and values of all: [M, D]."""
        q_NHK, k_NHK, v_NHK = self.project(hidden_ND)
        return self.out_proj(context.attend(layer, q_NHK[rows_M], k_NHK, v_NHK).flatten(1))

    def project(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv_NHK = product(hidden_ND, *self.fused).view(-1, 3, self.num_heads, self.head_dim)
        q_NHK, k_NHK, v_NHK = qkv_NHK.unbind(1)
        return q_NHK, k_NHK, v_NHK

    def lay_out(self, reorder: Reorder = lay_out) -> None:
        """Replace the weights by copies in the processor's packed layout. Called once, after they are read."""
        self.fused = lay_out_fused(self.linears, *self.fused, reorder)


class CrossAttention(nn.Module):
    """Project the decoder's queries; the context holds the encoder's keys and values, computed by `keys_values`."""

    fused: tuple[Weight, Tensor]

    def __init__(self, width: int, num_heads: int, group: TensorParallel) -> None:
        super().__init__()
        self.num_heads, self.head_dim = group.share(num_heads, "attention heads"), width // num_heads
        self.q_proj = ColumnLinear(width, width, group)
        self.k_proj = ColumnLinear(width, width, group)
        self.v_proj = ColumnLinear(width, width, group)
        self.out_proj = RowLinear(width, width, group)

    @property
    def linears(self) -> tuple[ColumnLinear, ...]:
        """The projections that are computed as one product with the weight and bias in `fused`."""
        return self.k_proj, self.v_proj

    def allocate(self, device: torch.device, dtype: torch.dtype, matrix_dtype: torch.dtype | None = None) -> None:
        """Allocate memory for the fused weights. Called once, before they are read."""
        self.fused = fuse(self.linears, device, dtype, matrix_dtype or dtype)

    def forward(self, layer: int, hidden_ND: Tensor, context: AttentionContext) -> Tensor:
        q_NHK = self.q_proj(hidden_ND).view(-1, self.num_heads, self.head_dim)
        return self.out_proj(context.cross_attend(layer, q_NHK).flatten(1))

    def keys_values(self, encoded_ND: Tensor) -> tuple[Tensor, Tensor]:
        k_NHK, v_NHK = product(encoded_ND, *self.fused).view(-1, 2, self.num_heads, self.head_dim).unbind(1)
        return k_NHK, v_NHK

    def lay_out(self, reorder: Reorder = lay_out) -> None:
        """Replace the weights by copies in the processor's packed layout. Called once, after they are read."""
        self.fused = lay_out_fused(self.linears, *self.fused, reorder)


def fuse(
    linears: tuple[ColumnLinear, ...], device: torch.device, dtype: torch.dtype, matrix_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Allocate one weight and one bias for several projections of one input; their parameters become views of these."""
    rows = [linear.rows for linear in linears]
    weight = torch.empty(sum(rows), linears[0].weight.shape[1], device=device, dtype=matrix_dtype)
    bias = torch.empty(sum(rows), device=device, dtype=dtype)
    for linear, weight_part, bias_part in zip(linears, weight.split(rows), bias.split(rows), strict=True):
        linear.weight = nn.Parameter(weight_part, requires_grad=False)
        linear.bias = nn.Parameter(bias_part, requires_grad=False)
    return weight, bias


def lay_out_fused(
    linears: tuple[ColumnLinear, ...], weight: Weight, bias: Tensor, reorder: Reorder
) -> tuple[Weight, Tensor]:
    assert isinstance(weight, Tensor), "weights are reordered once"
    laid_out = reorder(weight)
    if laid_out is None:
        return weight, bias
    for linear in linears:
        linear.weight = without_memory(linear.weight)
    return laid_out, bias
