"""Attention of whole sequences by the compiled kernel, in bfloat16. It knows no weights."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from batchloom.models.layers.native.signatures import Packed


def attend_packed(
    library: ctypes.CDLL,
    q_NHK: Tensor,
    k_SHK: Tensor,
    v_SHK: Tensor,
    lengths: Sequence[tuple[int, int]],
    causal: bool,
    scale: float,
    slopes_H: Tensor | None = None,
) -> Tensor:
    """Return the attention of packed sequences, [N, H, K]; `lengths`: queries and keys of each.

    With `causal`, the queries are the last of the sequence's tokens, and see those before. `slopes_H` (float32): of
    ALiBi, where attention is causal.
    """
    assert q_NHK.dtype == k_SHK.dtype == v_SHK.dtype == torch.bfloat16, "the kernel is for bfloat16"
    assert all(num_keys or not num_queries for num_queries, num_keys in lengths), "a query attends to a key at least"
    assert slopes_H is None or (causal and slopes_H.dtype == torch.float32)
    q_NHK, k_SHK, v_SHK = (x if x.stride(2) == 1 else x.contiguous() for x in (q_NHK, k_SHK, v_SHK))
    out_NHK = q_NHK.new_empty(q_NHK.shape)
    length_B2 = torch.tensor(lengths, dtype=torch.long, device=q_NHK.device).view(-1, 2)
    assert length_B2.sum(0).tolist() == [len(q_NHK), len(k_SHK)], "lengths are those of the packed tokens"
    slopes_H = None if slopes_H is None else slopes_H.contiguous()
    packed = Packed(
        *(x.data_ptr() for x in (q_NHK, k_SHK, v_SHK)),
        *(stride for x in (q_NHK, k_SHK, v_SHK) for stride in x.stride()[:2]),
        length_B2.data_ptr(),
        len(length_B2),
        *q_NHK.shape[1:],
        scale,
        None if slopes_H is None else slopes_H.data_ptr(),
        causal,
        out_NHK.data_ptr(),
    )
    library.packed_attention(ctypes.byref(packed), torch.get_num_threads())
    return out_NHK
