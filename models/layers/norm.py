"""Layer norms, and those of a residual sum, which are one kernel where there is one. They know no layer."""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn

from batchloom.models.kernels import kernel_or, launches_are_free
from batchloom.models.layers.native import norms
from batchloom.models.layers.native.library import bfloat16_kernels

FUSED_ROWS = 2048  # of a GPU: with fewer, Triton's launch takes the host longer than what it saves

NormOfSum = Callable[[Tensor, Tensor, nn.LayerNorm], tuple[Tensor, Tensor]]


class Norm(nn.LayerNorm):
    """A layer norm over the last dimension."""

    def of_sum(self, residual_ND: Tensor, update_ND: Tensor) -> Tensor:
        """Return norm(residual + update)."""
        return self.sum_and_norm(residual_ND, update_ND)[1]

    def sum_and_norm(self, residual_ND: Tensor, update_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return (residual + update, its norm)."""
        return _norm_of_sum_for(residual_ND)(residual_ND, update_ND, self)


def plain_norm_of_sum(residual_ND: Tensor, update_ND: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    sum_ND = residual_ND + update_ND
    return sum_ND, norm(sum_ND)


def _norm_of_sum_for(residual_ND: Tensor) -> NormOfSum:
    """Return what computes it for a device, dtype and number of rows, and for a graph or not."""
    if residual_ND.is_cpu and residual_ND.dtype == torch.bfloat16 and (library := bfloat16_kernels()) is not None:
        return partial(norms.norm_of_sum, library)
    pays = len(residual_ND) >= FUSED_ROWS or launches_are_free()
    return _norm_of_sum_on(residual_ND.device) if pays else plain_norm_of_sum


@cache
def _norm_of_sum_on(device: torch.device) -> NormOfSum:
    """Return the kernel where Triton works, and plain torch elsewhere."""

    def load() -> NormOfSum:
        from batchloom.models.layers.norm_kernel import norm_of_sum

        like_ND = torch.zeros(1, 16, device=device)
        norm_of_sum(like_ND, like_ND, nn.LayerNorm(16, device=device))
        return norm_of_sum

    plain: NormOfSum = plain_norm_of_sum
    return kernel_or(plain, device, load, without="norms are made by plain torch")
