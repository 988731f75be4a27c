"""Bans of n-grams as one Triton kernel, which goes through a row's text once; they are 28 operations of torch."""

import triton
import triton.language as tl
from torch import Tensor

from batchloom.models.generation.search.ngrams import Texts
from batchloom.models.generation.search.vocabulary import Vocabulary
from batchloom.models.transfers import launching_on

WINDOWS_AT_ONCE = 256


def ban_completions(logits_RV: Tensor, own: Texts, text: Texts, size: int, vocabulary: Vocabulary) -> None:
    """Ban the tokens that follow the last size - 1 tokens of `own` in `text`, as plain_ban_completions does."""
    num_windows = text.tokens_RT.shape[1] - size + 1
    if not len(logits_RV) or num_windows <= 0:
        return
    with launching_on(logits_RV.device):
        ban_kernel[(len(logits_RV),)](
            logits_RV,
            own.tokens_RT,
            own.length_R,
            text.tokens_RT,
            text.length_R,
            logits_RV.stride(0),
            own.tokens_RT.stride(0),
            text.tokens_RT.stride(0),
            logits_RV.shape[1],
            vocabulary.first,
            num_windows,
            SIZE=size,
            AT_ONCE=WINDOWS_AT_ONCE,
        )


# Of integers that change from step to step Triton would make variants.
@triton.jit(do_not_specialize=["text_stride", "num_windows"])  # type: ignore[untyped-decorator]
def ban_kernel(  # type: ignore[no-untyped-def]
    logits_RV,
    tokens_RT,
    length_R,
    text_RS,
    text_length_R,
    logits_stride,
    tokens_stride,
    text_stride,
    num_columns,
    first,
    num_windows,
    SIZE: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Ban in one row."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(length_R + row) - (SIZE - 1)  # of the tokens that the next one would make an n-gram with
    text_length = tl.load(text_length_R + row)
    if start >= 0:
        for window in range(0, num_windows, AT_ONCE):
            window_W = window + tl.arange(0, AT_ONCE)
            is_match_W = (window_W < num_windows) & (window_W + SIZE <= text_length)
            for offset in tl.static_range(SIZE - 1):
                wanted = tl.load(tokens_RT + row * tokens_stride + start + offset)
                token_W = tl.load(text_RS + row * text_stride + window_W + offset, mask=is_match_W, other=-1)
                is_match_W = is_match_W & (token_W == wanted)
            token_W = tl.load(text_RS + row * text_stride + window_W + SIZE - 1, mask=is_match_W, other=-1)
            column_W = token_W - first
            is_match_W = is_match_W & (column_W >= 0) & (column_W < num_columns)
            at_W = logits_RV + row * logits_stride + column_W
            logit_W = tl.load(at_W, mask=is_match_W, other=0.0).to(tl.float32)
            # By a sum: NaN stays. A token that completes several n-grams is written several times, always the same.
            tl.store(at_W, (logit_W + float("-inf")).to(logits_RV.dtype.element_ty), mask=is_match_W)
