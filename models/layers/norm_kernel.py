"""A residual sum and its layer norm as one Triton kernel: each value is read once, and written once for each result."""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from batchloom.models.transfers import launching_on

VALUES_OF_A_WARP = 512  # of a row; 4 to 16 warps share one


def norm_of_sum(residual_ND: Tensor, update_ND: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return (residual + update, its norm), both [N, D]; the sum is rounded before it is normed, as in plain torch."""
    residual_ND, update_ND = residual_ND.contiguous(), update_ND.contiguous()
    sum_ND, normed_ND = torch.empty_like(residual_ND), torch.empty_like(residual_ND)
    num_rows, width = residual_ND.shape
    if num_rows:
        with launching_on(residual_ND.device):
            norm_kernel[(num_rows,)](
                residual_ND,
                update_ND,
                norm.weight,
                norm.bias,
                sum_ND,
                normed_ND,
                norm.eps,
                WIDTH=width,
                PADDED_WIDTH=triton.next_power_of_2(width),
                num_warps=min(16, max(4, triton.next_power_of_2(width) // VALUES_OF_A_WARP)),
            )
    return sum_ND, normed_ND


@triton.jit  # type: ignore[untyped-decorator]
def norm_kernel(  # type: ignore[no-untyped-def]
    residual_ND,
    update_ND,
    weight_D,
    bias_D,
    sum_ND,
    normed_ND,
    eps,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
):
    """Sum and norm one row, in float32."""
    column_D = tl.arange(0, PADDED_WIDTH)
    is_column_D = column_D < WIDTH
    at_D = tl.program_id(0).to(tl.int64) * WIDTH + column_D
    residual_D = tl.load(residual_ND + at_D, mask=is_column_D, other=0.0).to(tl.float32)
    update_D = tl.load(update_ND + at_D, mask=is_column_D, other=0.0).to(tl.float32)
    rounded_D = (residual_D + update_D).to(sum_ND.dtype.element_ty)
    tl.store(sum_ND + at_D, rounded_D, mask=is_column_D)
    value_D = rounded_D.to(tl.float32)
    mean = tl.sum(value_D, 0) / WIDTH
    apart_D = tl.where(is_column_D, value_D - mean, 0.0)
    variance = tl.sum(apart_D * apart_D, 0) / WIDTH
    weight = tl.load(weight_D + column_D, mask=is_column_D, other=0.0).to(tl.float32)
    bias = tl.load(bias_D + column_D, mask=is_column_D, other=0.0).to(tl.float32)
    normed_D = apart_D / tl.sqrt(variance + eps) * weight + bias
    tl.store(normed_ND + at_D, normed_D.to(normed_ND.dtype.element_ty), mask=is_column_D)
