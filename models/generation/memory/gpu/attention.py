"""The decoder's attention context of one step over blocks: queries go to the blocks, and each row merges its blocks.

All shapes are those of the numbers it is given, and nothing asks the host, so that a step can be captured. It knows no
tokens, no weights, and of requests only the readers' places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from batchloom.models.generation.memory.cpu.entry_pool import attend_in_part
from batchloom.models.generation.memory.gpu.blocks import BLOCK, NOBODYS, BlockStore

# A score that no softmax sees, in any dtype. Finite, so that a block of which a row sees nothing is a number as well.
UNSEEN = -30_000.0


@dataclass(frozen=True)
class Reading:
    """Which rows read which of the first B blocks of a store."""

    reader_BR: Tensor  # rows, by their place among a block's readers; N where a place is free
    count_B: Tensor  # entries of a block that hold something
    table_NM: Tensor  # each row's blocks, NOBODYS where it has fewer
    place_NM: Tensor  # its place there


class BlockReader:
    """One step's attention over a store; `position_N` and slopes where the model has ALiBi."""

    def __init__(self, store: BlockStore, reading: Reading, position_N: Tensor, alibi_slopes: Tensor | None) -> None:
        self._store, self._reading = store, reading
        self._num_blocks = len(reading.count_B)
        self._is_missing_NM1 = (reading.table_NM == NOBODYS)[:, :, None]
        keys = store.layers[0]
        num_heads = keys.shape[2]
        holds_BS = torch.arange(BLOCK, device=keys.device) < reading.count_B[:, None]
        sees_BRS = store.descent_BRS[: self._num_blocks] & holds_BS[:, None]
        # Not torch.where, whose scalars cross to the device one by one.
        bias_BRS = torch.zeros(sees_BRS.shape, device=keys.device).masked_fill_(~sees_BRS, UNSEEN)
        bias_BHRS = bias_BRS[:, None].expand(-1, num_heads, -1, -1)
        self._shift_NMH: Tensor | None = None
        if alibi_slopes is not None:
            # From the block's last position, so that bfloat16 holds it well; the rest of the way in float32.
            position_BS = store.position_BS[: self._num_blocks].masked_fill(~holds_BS, -1.0)
            last_B = position_BS.amax(1)
            distance_BS = (position_BS - last_B[:, None]).masked_fill(~holds_BS, 0.0)
            bias_BHRS = bias_BHRS + (alibi_slopes[:, None] * distance_BS[:, None])[:, :, None]
            self._shift_NMH = (last_B[reading.table_NM] - position_N[:, None])[:, :, None] * alibi_slopes
        self._bias_XRS = bias_BHRS.to(keys.dtype).flatten(0, 1)  # X: blocks times heads

    def attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        """Queries over all blocks that each row reads: [N, H, K]."""
        reading = self._reading
        k_BHSK, v_BHSK = self._store.layers[layer][:, : self._num_blocks]
        # One row of zeros more asks where a place is free.
        scaled_NHK = F.pad(q_NHK * q_NHK.shape[-1] ** -0.5, (0, 0, 0, 0, 0, 1))
        q_XRK = scaled_NHK[reading.reader_BR].transpose(1, 2).flatten(0, 1)
        scores_XRS = torch.baddbmm(self._bias_XRS, q_XRK, k_BHSK.flatten(0, 1).transpose(1, 2))
        part_XRK, log_sum_XR = attend_in_part(scores_XRS, v_BHSK.flatten(0, 1))
        part_BHRK, log_sum_BHR = (x.unflatten(0, k_BHSK.shape[:2]) for x in (part_XRK, log_sum_XR))
        log_sum_NMH = log_sum_BHR[reading.table_NM, :, reading.place_NM]
        if self._shift_NMH is not None:
            log_sum_NMH = log_sum_NMH + self._shift_NMH
        weight_NMH = log_sum_NMH.masked_fill(self._is_missing_NM1, 4 * UNSEEN).softmax(1)
        part_NMHK = part_BHRK[reading.table_NM, :, reading.place_NM]
        return (weight_NMH[..., None] * part_NMHK).sum(1).to(q_NHK.dtype)


@dataclass(frozen=True)
class Writing:
    """Where each row's new entry goes."""

    block_N: Tensor
    offset_N: Tensor
    place_N: Tensor  # of the row among those that read the block: at first nobody else descends from the entry


class BlockAttention:
    """What a decoder asks in one step: a reader of its own texts, and where there is an encoder, one of its texts."""

    def __init__(self, store: BlockStore, writing: Writing, readers: Sequence[BlockReader]) -> None:
        self._store, self._writing, self._readers = store, writing, readers

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        self._store.write(layer, self._writing.block_N, self._writing.offset_N, k_NHK, v_NHK)
        return self._readers[0].attend(layer, q_NHK)

    def cross_attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        return self._readers[1].attend(layer, q_NHK)


def enter(store: BlockStore, writing: Writing, position_N: Tensor) -> None:
    """Notes each new entry's position, and that its own row descends from it; twice is as once."""
    places_R = torch.arange(store.num_readers, device=position_N.device)
    store.descent_BRS[writing.block_N, :, writing.offset_N] = places_R == writing.place_N[:, None]
    store.position_BS[writing.block_N, writing.offset_N] = position_N.float()
