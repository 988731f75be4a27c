"""Weights in the memory layout of the processor's kernels, made once at loading. It knows products and no layer.

torch's own linear passes plain weights to MKL, which is slower than oneDNN on processors that are not Intel's, or has
oneDNN reorder them at every call. Reordered once, a product takes (one core of a Zen 5, [M, 768] x [768, 3072]):

    M                 1      8     32    512
    float32    plain  121    514   1635  22375 microseconds
            laid out  108    179    665   9830
    bfloat16   plain  136    181    410   5046
            laid out   64    102    323   4706

The operators are those that torch.compile emits; where a torch build lacks them, weights stay plain. bfloat16 products
are a compiled kernel's where there is one (models/layers/native), which is faster yet for few rows.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from batchloom.models.layers.feedforward import Activation, gelu_tanh
from batchloom.models.layers.int8 import Int8Weight
from batchloom.models.layers.native.bfloat16 import Bfloat16Panels, panels
from batchloom.models.layers.native.library import dense_kernels

Weight = Tensor | Bfloat16Panels | Int8Weight
"""What `product` multiplies with: a plain weight, one that `lay_out` reordered, or one in int8."""

# Activations that oneDNN can fuse into the product, before rounding, with its names for them. Not relu: fused, it turns
# NaN into 0, and one NaN weight would give wrong answers in place of errors.
_FUSED: dict[Activation, tuple[str, str]] = {
    F.gelu: ("gelu", "none"),
    gelu_tanh: ("gelu", "tanh"),
}


Reorder = Callable[[Tensor], Weight | None]
"""Makes of a weight what `product` reads in its place: `lay_out`, or `quantized` of models/layers/int8.py."""


def lay_out(weight_FD: Tensor) -> Tensor | Bfloat16Panels | None:
    """Return the weight reordered, which only `product` reads, or None where nothing is gained."""
    if weight_FD.device.type != "cpu":
        return None
    if weight_FD.dtype == torch.bfloat16 and (library := dense_kernels(torch.bfloat16)) is not None:
        return panels(library, weight_FD)
    if not computes_in(weight_FD.dtype):
        return None
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_FD, None)
    return laid_out


def product(
    hidden_ND: Tensor, weight_FD: Weight, bias_F: Tensor | None, activation: Activation | None = None
) -> Tensor:
    """Compute activation(hidden @ weight.T + bias), [N, D] -> [N, F], with a plain or a reordered weight."""
    if not isinstance(weight_FD, Tensor):
        return weight_FD.product(hidden_ND, bias_F, activation)
    if len(hidden_ND) == 1 and weight_FD.is_mkldnn:
        # oneDNN splits long sums for a single row only, which changes rounding. Two rows give the same bits as any
        # batch, and cost no more: the time is that of reading the weight.
        return product(hidden_ND.expand(2, -1), weight_FD, bias_F, activation)[:1]
    if not weight_FD.is_mkldnn:
        if activation is gelu_tanh and bias_F is not None and hidden_ND.is_cuda:
            fused_NF: Tensor = torch._addmm_activation(bias_F, hidden_ND, weight_FD.t(), use_gelu=True)
            return fused_NF  # by cuBLAS, whose GELU is the approximation, before rounding
        sums_NF = F.linear(hidden_ND, weight_FD, bias_F)
        return sums_NF if activation is None else activation(sums_NF)
    if activation is None or activation not in _FUSED:
        sums_NF = torch.ops.mkldnn._linear_pointwise(hidden_ND, weight_FD, bias_F, "none", [], "")
        return sums_NF if activation is None else activation(sums_NF)
    name, algorithm = _FUSED[activation]
    activated_NF: Tensor = torch.ops.mkldnn._linear_pointwise(hidden_ND, weight_FD, bias_F, name, [], algorithm)
    return activated_NF


@cache
def computes_in(dtype: torch.dtype) -> bool:
    """Return whether oneDNN computes in this dtype here; found by trying, since torch builds differ."""
    try:
        supported = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        if not torch.backends.mkldnn.is_available() or not supported:
            return False
        weight = torch.eye(16, dtype=dtype)
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        found = torch.ops.mkldnn._linear_pointwise(weight, laid_out, None, "none", [], "")
        return torch.equal(found, weight)
    except (AttributeError, RuntimeError):
        return False
