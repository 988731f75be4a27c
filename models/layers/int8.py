"""Products in integers on CPUs: int8 weights with a scale for each output, activations with a scale for each row.

    x ~ s_N (u_ND - 128)      w ~ t_F q_FD      x @ w.T ~ s_N t_F sum_D (u_ND - 128) q_FD

u is uint8, because oneDNN's kernels for signed activations are slower by far. Scales of rows are found at each call, so
that a row's answer depends on no other row. Sums are exact (int32), so it does not depend on their number either.

A compiled kernel does it in one call where there is one (models/layers/native). oneDNN's operator, with torch's around
it, is the way elsewhere, and the oracle.
"""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from batchloom.models.layers.feedforward import Activation, gelu_tanh
from batchloom.models.layers.native.int8 import Int8Panels, panels
from batchloom.models.layers.native.library import dense_kernels

LARGEST = 127
ZERO = 128
"""Stands for 0 among uint8 activations."""
CHUNK_ROWS = 128
"""Rows of one product: what lies between the passes over them stays in the cache, and more rows make none faster."""
# A row's scale is a number of bfloat16, and its largest value must fit: this is more than rounding twice loses.
_ROUND_UP = 1 + 2**-7
_SMALLEST = 1e-30  # an output of zeros has a scale, too


@dataclass(frozen=True)
class OperatorWeight:
    """A weight that oneDNN's operator multiplies in integers."""

    packed: Tensor
    """Integers in the layout of oneDNN's kernels."""
    scale_F: Tensor
    """float32"""
    zero_point_F: Tensor
    """int32 zeros, which the operator asks for."""

    @property
    def num_bytes(self) -> int:
        return self.packed.numel() + self.scale_F.nbytes + self.zero_point_F.nbytes

    def product(self, hidden_ND: Tensor, bias_F: Tensor | None, activation: Activation | None = None) -> Tensor:
        """Compute activation(hidden @ weight.T + bias), [N, D] -> [N, F], in bfloat16 or float32 as `hidden` is."""
        hidden_ND = hidden_ND.contiguous()
        if len(hidden_ND) <= CHUNK_ROWS:
            return self._of_chunk(hidden_ND, bias_F, activation)
        out_NF = hidden_ND.new_empty(len(hidden_ND), len(self.scale_F))
        for chunk_ND, part_NF in zip(hidden_ND.split(CHUNK_ROWS), out_NF.split(CHUNK_ROWS), strict=True):
            part_NF.copy_(self._of_chunk(chunk_ND, bias_F, activation))
        return out_NF

    def _of_chunk(self, hidden_ND: Tensor, bias_F: Tensor | None, activation: Activation | None) -> Tensor:
        quantized_ND, scale_N1 = quantized_rows(hidden_ND)
        if activation in _IN_FLOAT32:
            activated_NF = self._sums(quantized_ND, torch.float32).mul_(scale_N1)
            if bias_F is not None:
                activated_NF.add_(bias_F)
            return _IN_FLOAT32[activation](activated_NF).to(hidden_ND.dtype)
        sums_NF, scale_N1 = self._sums(quantized_ND, hidden_ND.dtype), scale_N1.to(hidden_ND.dtype)
        sums_NF = sums_NF.mul_(scale_N1) if bias_F is None else torch.addcmul(bias_F, sums_NF, scale_N1)
        return sums_NF if activation is None else activation(sums_NF)

    def _sums(self, quantized_ND: Tensor, dtype: torch.dtype) -> Tensor:
        """Return t_F sum_D (u_ND - 128) q_FD."""
        sums_NF: Tensor = torch.ops.onednn.qlinear_pointwise(
            quantized_ND, 1.0, ZERO, self.packed, self.scale_F, self.zero_point_F, None, 1.0, 0, dtype, "none", [], ""
        )
        return sums_NF


Int8Weight = OperatorWeight | Int8Panels
"""A weight in int8, by who multiplies it."""


def quantized(weight_FD: Tensor) -> Int8Weight:
    """Return a weight in int8, each output by its own scale."""
    scale_F1 = weight_FD.abs().amax(-1, keepdim=True).float().div_(LARGEST).clamp_min_(_SMALLEST)
    integers_FD = (weight_FD / scale_F1).round_().to(torch.int8)
    return packed(integers_FD, scale_F1[:, 0])


def packed(integers_FD: Tensor, scale_F: Tensor) -> Int8Weight:
    """Return integers and their scales as a weight, for the kernel where there is one."""
    library = dense_kernels(torch.int8)
    return for_operator(integers_FD, scale_F) if library is None else panels(library, integers_FD, scale_F)


def for_operator(integers_FD: Tensor, scale_F: Tensor) -> OperatorWeight:
    """Return integers and their scales in the layout of oneDNN's operator."""
    layout = torch.ops.onednn.qlinear_prepack(integers_FD.contiguous(), None)
    return OperatorWeight(layout, scale_F.contiguous(), torch.zeros(len(scale_F), dtype=torch.int32))


def quantized_rows(hidden_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return uint8 [N, D] and the scale of each row, bfloat16 [N, 1].

    A row that holds NaN or infinity has a scale that is not finite, so that its products are not either. A row of zeros
    has the scale 0, whatever its integers are.
    """
    scale_N1 = _largest(hidden_ND).mul(_ROUND_UP / LARGEST)
    shifted_ND = hidden_ND.float() * scale_N1.float().reciprocal_()
    # Conversion cuts off, which rounds what is positive and has a half added. By way of int16: to uint8 it is not
    # vectorized, and takes six times as long.
    return shifted_ND.add_(ZERO + 0.5).to(torch.int16).to(torch.uint8), scale_N1


def _largest(hidden_ND: Tensor) -> Tensor:
    """Return the largest absolute value of each row, bfloat16 [N, 1]; NaN where there is one."""
    if hidden_ND.dtype != torch.bfloat16:
        return hidden_ND.abs().amax(-1, keepdim=True).bfloat16()
    # Without their signs, numbers are in the order of their bits, NaN last: four times as fast as by values.
    bits_ND = hidden_ND.view(torch.int16).bitwise_and(0x7FFF)
    return bits_ND.amax(-1, keepdim=True).view(torch.bfloat16)


def fast_gelu_tanh(hidden: Tensor) -> Tensor:
    """Compute gelu_tanh by the logistic function, which is the same and takes half as long.

    0.5 x (1 + tanh y) = x sigmoid(2 y), with y = sqrt(2 / pi) (x + 0.044715 x^3)
    """
    double = 2 * (2 / torch.pi) ** 0.5
    weight = (hidden * hidden).mul_(0.044715 * double).add_(double).mul_(hidden).sigmoid_()
    return weight.mul_(hidden)


# Activations that are computed before rounding, as those are that oneDNN fuses in other dtypes.
_IN_FLOAT32: dict[Activation | None, Activation] = {F.gelu: F.gelu, gelu_tanh: fast_gelu_tanh}


@cache
def computes_int8() -> bool:
    """Return whether oneDNN's int8 products are exact here; found by trying, since torch builds and processors differ.

    The numbers are the largest: without VNNI instructions, sums of two products do not fit the 16 bits they are in.
    """
    try:
        quantized_ND = torch.tensor([[255], [0]], dtype=torch.uint8).repeat(1, 512)
        integers_FD = torch.tensor([[LARGEST], [-LARGEST]], dtype=torch.int8).repeat(8, 512)
        weight = for_operator(integers_FD, torch.ones(16))
        expected_NF = (quantized_ND.int() - ZERO) @ integers_FD.int().t()
        return torch.equal(weight._sums(quantized_ND, torch.float32), expected_NF.float())
    except (AttributeError, RuntimeError):
        return False
