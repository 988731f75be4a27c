"""Paged blocks: keys and values of many sequences in equal blocks of one array a layer. It knows no row and no model.

A sequence takes blocks as it grows and frees them when it ends. The last blocks move into the holes, so that all used
blocks lie at the beginning of the array, which attention reads without gathering.

    take 2, take 1, take 2    - - a a b c c
    free b                    - - a a . c c
    compacted                 - - a a c c        block 6 moved to 4: c's table must be updated
"""

import heapq
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from batchloom.models.generation.enlarging import enlarged
from batchloom.models.transfers import Numbers, upload

BLOCK_SIZE = (
    32  # tokens: half a block a sequence is read unused, and each block costs a partial result of two keys' size
)
NULL_BLOCK = 0  # zeros, never written: fills the tables of rows that have fewer blocks than others
PADDING_BLOCK = 1  # never read: where padding rows write


class BlockStore:
    """Blocks [2, B, H, S, K] of each layer, and for each entry the position [B, S] and who descends from it [B, R, S].

    R: rows that can read one block, enough for the widest search. Everything on the device keeps its address until
    `version` changes, which says that the arrays were reallocated.
    """

    def __init__(self, num_layers: int, num_heads: int, head_dim: int, like: Tensor) -> None:
        self.version = 0
        self.num_readers = 1
        self.layers = [like.new_zeros(2, 0, num_heads, BLOCK_SIZE, head_dim) for _ in range(num_layers)]
        self.descent_BRS = like.new_zeros(0, 1, BLOCK_SIZE, dtype=torch.bool)
        self.position_BS = like.new_zeros(0, BLOCK_SIZE, dtype=torch.float32)
        self._free: list[int] = []
        self._num_reserved = 0
        self.end = 0  # blocks from here on are unused
        self.reserve(2)
        self.take(2)  # NULL_BLOCK, PADDING_BLOCK

    @property
    def num_taken(self) -> int:
        return self.end - len(self._free)

    @property
    def capacity(self) -> int:
        return len(self.position_BS)

    def reserve(self, num: int) -> None:
        """Make room for `num` more blocks, and for holes, before they are taken: reallocation ends all graphs."""
        self._num_reserved += num
        if (end := self._num_reserved * 8 // 7 + 1) > self.capacity:
            self._resize(bucket(end), self.num_readers)

    def release(self, num: int) -> None:
        """Give up the reservation of `num` blocks."""
        self._num_reserved -= num

    def take(self, num: int) -> Numbers:
        """Allocate blocks, those with the lowest numbers first."""
        if (end := self.end + max(0, num - len(self._free))) > self.capacity:
            self._resize(bucket(end), self.num_readers)
        taken = [heapq.heappop(self._free) for _ in range(min(num, len(self._free)))]
        taken += range(self.end, end)
        self.end = end
        return np.array(taken, dtype=np.int64)

    def free(self, blocks: Numbers) -> None:
        """Return blocks that `take` allocated."""
        for block in blocks.tolist():
            heapq.heappush(self._free, block)

    def erase(self, blocks: Numbers) -> None:
        """Write zeros: what the next owner has not written yet is masked, and must still be finite."""
        (block_M,) = upload([blocks], self.position_BS.device)
        for layer in self.layers:
            layer.index_fill_(1, block_M, 0)

    def allow_readers(self, num_readers: int) -> None:
        """Make room for `num_readers` rows that read one block."""
        if num_readers > self.num_readers:
            self._resize(self.capacity, 1 << (num_readers - 1).bit_length())

    def compact(self) -> Numbers | None:
        """Move the last blocks into holes once these are an eighth; return each block's new number, or None."""
        if 8 * len(self._free) <= self.end:
            return None
        free, stop = set(self._free), self.num_taken
        moved = np.arange(self.end)
        target = np.array(sorted(block for block in free if block < stop), dtype=np.int64)
        source = np.array([block for block in range(stop, self.end) if block not in free], dtype=np.int64)
        moved[source] = target
        source_M, target_M = upload([source, target], self.position_BS.device)
        for layer in self.layers:
            layer.index_copy_(1, target_M, layer.index_select(1, source_M))
        for state in (self.descent_BRS, self.position_BS):
            state.index_copy_(0, target_M, state.index_select(0, source_M))
        self._free, self.end = [], stop
        return moved

    def fill(self, blocks: Numbers, positions: Numbers, layers: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Write prompts, packed [N, H, K], that all their readers see: each token's block and its position."""
        block_N, position_N = upload([blocks, positions], self.position_BS.device)
        offset_N = position_N % BLOCK_SIZE
        for layer, (k_NHK, v_NHK) in enumerate(layers):
            self.write(layer, block_N, offset_N, k_NHK, v_NHK)
        self.descent_BRS[block_N] = True
        self.position_BS[block_N, offset_N] = position_N.float()

    def write(self, layer: int, block_N: Tensor, offset_N: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> None:
        """Write keys and values of entries, each at its offset in its block."""
        keys, values = self.layers[layer]
        keys[block_N, :, offset_N] = k_NHK
        values[block_N, :, offset_N] = v_NHK

    def reorder(self, blocks_GM: Tensor, parents_GB: Tensor) -> None:
        """In each unit, let sequence b continue from sequence parents_GB[unit, b]; `blocks_GM`: the units' blocks."""
        width, num_blocks = parents_GB.shape[1], blocks_GM.shape[1]
        descent_GMRS = self.descent_BRS[blocks_GM]
        parents_GMBS = parents_GB[:, None, :, None].expand(-1, num_blocks, -1, BLOCK_SIZE)
        descent_GMRS[:, :, :width] = descent_GMRS.gather(2, parents_GMBS)
        self.descent_BRS[blocks_GM] = descent_GMRS

    def _resize(self, capacity: int, num_readers: int) -> None:
        """Reallocate, one layer at a time, so that old and new are both in memory for one layer only."""
        self.version += 1
        self.descent_BRS = enlarged(self.descent_BRS, (capacity, num_readers, BLOCK_SIZE), fill=True)
        self.position_BS = enlarged(self.position_BS, (capacity, BLOCK_SIZE))
        for index, layer in enumerate(self.layers):
            if layer.shape[1] < capacity:
                self.layers[index] = enlarged(layer, (2, capacity, *layer.shape[2:]))
        self.num_readers = num_readers


def bucket(number: int) -> int:
    """Round up by at most a quarter, so that there are few different results: four an octave."""
    step = 1 << max(0, number.bit_length() - 3)
    return -(-number // step) * step
