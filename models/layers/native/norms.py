"""The layer norm of a residual sum by the compiled kernel, in bfloat16; models/layers/norm.py has the plain one."""

import ctypes

import torch
from torch import Tensor, nn

NUMBERS_OF_A_THREAD = 1 << 15  # with fewer, threads take longer to meet than to compute


def norm_of_sum(
    library: ctypes.CDLL, residual_ND: Tensor, update_ND: Tensor, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    """Return (residual + update, its norm), both [N, D]; the sum is rounded before it is normed, as in plain torch."""
    parameters = norm.weight.contiguous(), norm.bias.contiguous()
    assert all(x.dtype == torch.bfloat16 for x in (residual_ND, update_ND, *parameters)), "the kernel is for bfloat16"
    assert residual_ND.shape == update_ND.shape == (len(residual_ND), *norm.normalized_shape), residual_ND.shape
    residual_ND, update_ND = residual_ND.contiguous(), update_ND.contiguous()
    sum_ND, normed_ND = torch.empty_like(residual_ND), torch.empty_like(residual_ND)
    library.norm_of_sum(
        residual_ND.data_ptr(),
        update_ND.data_ptr(),
        *residual_ND.shape,
        *(x.data_ptr() for x in parameters),
        norm.eps,
        sum_ND.data_ptr(),
        normed_ND.data_ptr(),
        min(torch.get_num_threads(), 1 + residual_ND.numel() // NUMBERS_OF_A_THREAD),
    )
    return sum_ND, normed_ND
