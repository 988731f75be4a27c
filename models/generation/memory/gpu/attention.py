"""Paged attention of one decode step: queries go to the blocks, and each row merges the results of its blocks.

All shapes are those of the arrays it is given, and nothing synchronizes, so that a step can be captured. It knows no
tokens, no weights, and of requests only the rows that read a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from batchloom.models.generation.memory.gpu.blocks import BLOCK_SIZE, NULL_BLOCK, BlockStore
from batchloom.models.generation.memory.prompt_memory import attend_in_part

# The score of a masked entry, in any dtype. Finite, so that a block of which a row sees nothing gives no NaN.
MASKED = -30_000.0


@dataclass(frozen=True)
class BlockReads:
    """Which rows read which of the first B blocks of a store."""

    reader_BR: Tensor  # the rows that read a block; N where fewer than R do
    count_B: Tensor  # entries of a block that are written
    table_NM: Tensor  # each row's blocks, NULL_BLOCK where it has fewer than M
    place_NM: Tensor  # the row's index among that block's readers
    length_N: Tensor  # how many blocks it has


@dataclass(frozen=True)
class BlockWrites:
    """Where each row's new entry goes."""

    block_N: Tensor
    offset_N: Tensor
    place_N: Tensor  # the row's index among the block's readers: at first no other row descends from the entry


class BlockReader:
    """One step's attention over a store; `position_N` and slopes are used where the model has ALiBi."""

    def __init__(self, store: BlockStore, reads: BlockReads, position_N: Tensor, alibi_slopes: Tensor | None) -> None:
        self._store, self._reads = store, reads
        self._num_blocks = len(reads.count_B)
        self._is_missing_NM1 = (reads.table_NM == NULL_BLOCK)[:, :, None]
        keys = store.layers[0]
        num_heads = keys.shape[2]
        is_written_BS = torch.arange(BLOCK_SIZE, device=keys.device) < reads.count_B[:, None]
        sees_BRS = store.descent_BRS[: self._num_blocks] & is_written_BS[:, None]
        # Not torch.where, which copies its scalars to the device and synchronizes.
        bias_BRS = torch.zeros(sees_BRS.shape, device=keys.device).masked_fill_(~sees_BRS, MASKED)
        bias_BHRS = bias_BRS[:, None].expand(-1, num_heads, -1, -1)
        self._shift_NMH: Tensor | None = None
        if alibi_slopes is not None:
            # ALiBi counts from the block's last position, small enough for bfloat16; the rest is added in float32.
            position_BS = store.position_BS[: self._num_blocks].masked_fill(~is_written_BS, -1.0)
            last_B = position_BS.amax(1)
            distance_BS = (position_BS - last_B[:, None]).masked_fill(~is_written_BS, 0.0)
            bias_BHRS = bias_BHRS + (alibi_slopes[:, None] * distance_BS[:, None])[:, :, None]
            self._shift_NMH = (last_B[reads.table_NM] - position_N[:, None])[:, :, None] * alibi_slopes
        self._bias_XRS = bias_BHRS.to(keys.dtype).flatten(0, 1)  # X: blocks times heads

    def append(self, layer: int, writes: BlockWrites, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        """Write the new entries' keys and values, and return attention with them among what each row reads.

        Padding rows may get anything.
        """
        self._store.write(layer, writes.block_N, writes.offset_N, k_NHK, v_NHK)
        return self.attend(layer, q_NHK)

    def attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        """Return attention over all blocks that each row reads: [N, H, K]."""
        reads = self._reads
        k_BHSK, v_BHSK = self._store.layers[layer][:, : self._num_blocks]
        # Row N, zeros, stands where a block has fewer than R readers.
        scaled_NHK = F.pad(q_NHK * q_NHK.shape[-1] ** -0.5, (0, 0, 0, 0, 0, 1))
        q_XRK = scaled_NHK[reads.reader_BR].transpose(1, 2).flatten(0, 1)
        scores_XRS = torch.baddbmm(self._bias_XRS, q_XRK, k_BHSK.flatten(0, 1).transpose(1, 2))
        partial_XRK, log_sum_XR = attend_in_part(scores_XRS, v_BHSK.flatten(0, 1))
        partial_BHRK, log_sum_BHR = (x.unflatten(0, k_BHSK.shape[:2]) for x in (partial_XRK, log_sum_XR))
        log_sum_NMH = log_sum_BHR[reads.table_NM, :, reads.place_NM]
        if self._shift_NMH is not None:
            log_sum_NMH = log_sum_NMH + self._shift_NMH
        weight_NMH = log_sum_NMH.masked_fill(self._is_missing_NM1, 4 * MASKED).softmax(1)
        partial_NMHK = partial_BHRK[reads.table_NM, :, reads.place_NM]
        return (weight_NMH[..., None] * partial_NMHK).sum(1).to(q_NHK.dtype)


class BlockAttention:
    """A decode step's attention context: one reader of generated tokens, and with an encoder one of prompts."""

    def __init__(self, writes: BlockWrites, readers: Sequence[BlockReader]) -> None:
        self._writes, self._readers = writes, readers

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        """Write the new keys and values, and return self-attention: [N, H, K]."""
        return self._readers[0].append(layer, self._writes, q_NHK, k_NHK, v_NHK)

    def cross_attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        """Return attention over each row's encoder output: [N, H, K]."""
        return self._readers[1].attend(layer, q_NHK)


def enter(store: BlockStore, writes: BlockWrites, position_N: Tensor) -> None:
    """Record each new entry's position, and that only its own row descends from it. Idempotent."""
    places_R = torch.arange(store.num_readers, device=position_N.device)
    store.descent_BRS[writes.block_N, :, writes.offset_N] = places_R == writes.place_N[:, None]
    store.position_BS[writes.block_N, writes.offset_N] = position_N.float()
