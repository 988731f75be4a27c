"""Attention over packed sequences by one kernel call: FlashAttention with sequence boundaries. It knows no weights."""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from batchloom.models.transfers import to_device

DTYPES = (torch.float16, torch.bfloat16)
MIN_CAPABILITY = (8, 0)  # of a GPU: below it torch has no such kernel
MAX_WIDTH, WIDTH_STEP = 256, 8  # of heads


class KernelAttention:
    """Softmax attention of B sequences without padding, on GPUs that have the kernel: `is_for` tells.

    FlashAttention-2 by torch: Dao 2023, arXiv 2307.08691.
    """

    def __init__(self, query_lengths: Sequence[int], key_lengths: Sequence[int], causal: bool) -> None:
        assert len(query_lengths) == len(key_lengths)
        assert not causal or list(query_lengths) == list(key_lengths), "the kernel aligns the last query and key"
        self.causal = causal
        self.num_positions = sum(key_lengths)
        self._longest_query, self._longest_key = max(query_lengths, default=0), max(key_lengths, default=0)
        self._ends = [list(accumulate(lengths, initial=0)) for lengths in (query_lengths, key_lengths)]
        self._ends_2E: Tensor | None = None  # E: B + 1

    @staticmethod
    def is_for(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        """Return whether tensors of a device, dtype and head width can be computed."""
        return (
            device.type == "cuda"
            and dtype in DTYPES
            and head_dim <= MAX_WIDTH
            and torch.version.hip is None
            and torch.backends.cuda.is_flash_attention_available()
            and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY
        )

    def __call__(self, q_NHK: Tensor, k_SHK: Tensor, v_SHK: Tensor, scale: float) -> Tensor:
        if self._ends_2E is None:
            self._ends_2E = to_device(self._ends, q_NHK.device, torch.int32)
        width = q_NHK.shape[-1]
        if width % WIDTH_STEP:
            q_NHK, k_SHK, v_SHK = (F.pad(x, (0, -width % WIDTH_STEP)) for x in (q_NHK, k_SHK, v_SHK))
        # What torch.nn.attention.varlen calls; that module came with torch 2.10.
        attended_NHK: Tensor = torch.ops.aten._flash_attention_forward(
            q_NHK,
            k_SHK,
            v_SHK,
            self._ends_2E[0],
            self._ends_2E[1],
            self._longest_query,
            self._longest_key,
            0.0,
            self.causal,
            False,
            scale=scale,
        )[0]
        return attended_NHK[..., :width]
