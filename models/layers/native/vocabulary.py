"""A pass over logits in bfloat16 by the compiled kernel; models/generation/search/candidates.py has the plain one."""

import ctypes

import torch
from torch import Tensor


def log_normalizers(library: ctypes.CDLL, logits_RV: Tensor) -> Tensor:
    """Return the log-sum-exp of each row, float32 [R]; NaN where a row holds NaN or infinity, -inf of nothing but -inf.

    `logits_RV`: the numbers of a row follow each other.
    """
    assert logits_RV.dtype == torch.bfloat16, logits_RV.dtype
    assert logits_RV.stride(1) == 1, "the numbers of a row follow each other"
    normalizer_R = logits_RV.new_empty(len(logits_RV), dtype=torch.float32)
    library.log_normalizers(
        logits_RV.data_ptr(), *logits_RV.shape, logits_RV.stride(0), normalizer_R.data_ptr(), torch.get_num_threads()
    )
    return normalizer_R
