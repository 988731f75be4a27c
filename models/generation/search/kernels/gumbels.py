"""Gumbel noise as one Triton kernel: hashes of 64 bits and two logarithms a number, 42 operations of torch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from batchloom.models.transfers import launching_on

CHOICES_AT_ONCE = 1024
GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)  # splitmix64's constants, as in randomness.py
FIRST, SECOND = tl.constexpr(0xBF58476D1CE4E5B9), tl.constexpr(0x94D049BB133111EB)


def gumbels(key_R: Tensor, step_R: Tensor, choice_RC: Tensor) -> Tensor:
    """Return a standard Gumbel random number for each numbered choice of each row, float64 [R, C]."""
    num_rows, num_choices = choice_RC.shape
    noise_RC = torch.empty(num_rows, num_choices, dtype=torch.float64, device=choice_RC.device)
    if noise_RC.numel():
        size = min(CHOICES_AT_ONCE, triton.next_power_of_2(num_choices))
        with launching_on(choice_RC.device):
            gumbel_kernel[(num_rows, triton.cdiv(num_choices, size))](
                key_R.contiguous(),
                step_R.contiguous(),
                choice_RC,
                noise_RC,
                *choice_RC.stride(),
                num_choices,
                SIZE=size,
            )
    return noise_RC


@triton.jit
def splitmix(key, number):  # type: ignore[no-untyped-def]
    """Return output number `number` of splitmix64 from the state `key`; all are uint64 and wrap around."""
    bits = key + (number + 1) * GOLDEN
    bits = (bits ^ (bits >> 30)) * FIRST
    bits = (bits ^ (bits >> 27)) * SECOND
    return bits ^ (bits >> 31)


@triton.jit  # type: ignore[untyped-decorator]
def gumbel_kernel(  # type: ignore[no-untyped-def]
    key_R, step_R, choice_RC, noise_RC, row_stride, column_stride, num_choices, SIZE: tl.constexpr
):
    """Make some numbers of one row."""
    row = tl.program_id(0).to(tl.int64)
    column_C = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    is_choice_C = column_C < num_choices
    key = tl.load(key_R + row).to(tl.uint64, bitcast=True)
    step = tl.load(step_R + row).to(tl.uint64, bitcast=True)
    at_C = row * row_stride + column_C * column_stride
    choice_C = tl.load(choice_RC + at_C, mask=is_choice_C, other=0).to(tl.uint64, bitcast=True)
    bits_C = splitmix(splitmix(key, step), choice_C)
    uniform_C = ((bits_C >> 12).to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2 ** -52: in the open interval (0, 1)
    noise_C = -tl.log(-tl.log(uniform_C))
    tl.store(noise_RC + row * num_choices + column_C, noise_C, mask=is_choice_C)
