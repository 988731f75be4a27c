"""The largest logit of each row, its token, and the normalizer, as one Triton kernel that reads every logit once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from batchloom.models.transfers import launching_on

COLUMNS_AT_ONCE = 4096  # of a row, by the 8 warps that share it


def best_and_normalizer(logits_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's largest logit and its token, the first of equals, and the log-sum-exp, float32: all [R].

    A row with a NaN or +infinity has NaN for both; one of -inf alone has -inf, and token 0.
    """
    num_rows, vocab_size = logits_RV.shape
    if logits_RV.stride(1) != 1:
        logits_RV = logits_RV.contiguous()
    value_R = logits_RV.new_empty(num_rows)
    token_R = logits_RV.new_empty(num_rows, dtype=torch.long)
    normalizer_R = logits_RV.new_empty(num_rows, dtype=torch.float32)
    if num_rows:
        with launching_on(logits_RV.device):
            vocabulary_kernel[(num_rows,)](
                logits_RV,
                value_R,
                token_R,
                normalizer_R,
                logits_RV.stride(0),
                VOCAB_SIZE=vocab_size,
                COLUMNS=min(COLUMNS_AT_ONCE, triton.next_power_of_2(vocab_size)),
                num_warps=8,
            )
    return value_R, token_R, normalizer_R


@triton.jit  # type: ignore[untyped-decorator]
def vocabulary_kernel(  # type: ignore[no-untyped-def]
    logits_RV, value_R, token_R, normalizer_R, row_stride, VOCAB_SIZE: tl.constexpr, COLUMNS: tl.constexpr
):
    """Reduce one row. Each of the columns that are read at once keeps a maximum, its place and a sum of its own."""
    row = tl.program_id(0).to(tl.int64)
    column_K = tl.arange(0, COLUMNS)
    best_K = tl.full((COLUMNS,), float("-inf"), tl.float32)
    place_K = column_K
    sum_K = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, VOCAB_SIZE, COLUMNS):
        at_K = first + column_K
        logit_K = tl.load(logits_RV + row * row_stride + at_K, mask=at_K < VOCAB_SIZE, other=float("-inf"))
        logit_K = logit_K.to(tl.float32)
        is_better_K = logit_K > best_K
        higher_K = tl.where(is_better_K, logit_K, best_K)
        place_K = tl.where(is_better_K, at_K, place_K)
        shift_K = tl.where(higher_K == float("-inf"), 0.0, higher_K)  # -inf minus -inf would be NaN
        sum_K = sum_K * tl.exp(best_K - shift_K) + tl.exp(logit_K - shift_K)
        best_K = higher_K
    best = tl.max(best_K, 0)
    shift = tl.where(best == float("-inf"), 0.0, best)
    total = tl.sum(sum_K * tl.exp(best_K - shift), 0)
    place = tl.min(tl.where(best_K == best, place_K, VOCAB_SIZE - 1), 0)
    best = tl.where(total == total, best, total)  # NaN is larger than nothing, so a row of it has no best logit
    tl.store(value_R + row, best.to(value_R.dtype.element_ty))
    tl.store(token_R + row, place.to(tl.int64))
    tl.store(normalizer_R + row, shift + tl.log(total))
