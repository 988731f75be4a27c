"""Keys and values of many texts in equal blocks of one array a layer. It knows who took a block, no row and no model.

A text takes blocks as it grows and gives them back when it ends, and the last blocks move into the holes, so that all
that is held lies at the beginning of the array, where attention reads it as it lies.

    take 2, take 1, take 2    - - a a b c c
    b gives back              - - a a . c c
    compacted                 - - a a c c        block 6 moved to 4: the taker of c is told
"""

import heapq
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from batchloom.models.generation.crossings import Numbers, upload

BLOCK = 32  # tokens: half a block a text is read in vain, and each block costs a partial result as large as two keys
NOBODYS = 0  # a block of zeros, never written: where a row has fewer blocks than others
PADDING = 1  # a block that nobody reads: where rows that only pad write


class BlockStore:
    """Blocks [2, B, H, S, K] of each layer, and for each entry the position [B, S] and who descends from it [B, R, S].

    R: places for rows that read a block, enough for the widest search. Everything on the device keeps its address until
    `version` changes: the arrays have grown.
    """

    def __init__(self, num_layers: int, num_heads: int, head_dim: int, like: Tensor) -> None:
        self.version = 0
        self.num_readers = 1
        self.layers = [like.new_zeros(2, 0, num_heads, BLOCK, head_dim) for _ in range(num_layers)]
        self.descent_BRS = like.new_zeros(0, 1, BLOCK, dtype=torch.bool)
        self.position_BS = like.new_zeros(0, BLOCK, dtype=torch.float32)
        self._free: list[int] = []
        self._num_reserved = 0
        self.end = 0  # blocks from here on were never taken, or were given back
        self.reserve(2)
        self.take(2)  # NOBODYS, PADDING

    @property
    def num_taken(self) -> int:
        return self.end - len(self._free)

    @property
    def capacity(self) -> int:
        return len(self.position_BS)

    def reserve(self, num: int) -> None:
        """Room for so many blocks more and for holes, before they are taken: growing moves all, and ends all graphs."""
        self._num_reserved += num
        if (end := self._num_reserved * 8 // 7 + 1) > self.capacity:
            self._resize(bucket(end), self.num_readers)

    def release(self, num: int) -> None:
        self._num_reserved -= num

    def take(self, num: int) -> Numbers:
        """Blocks that are free, the first ones first."""
        if (end := self.end + max(0, num - len(self._free))) > self.capacity:
            self._resize(bucket(end), self.num_readers)
        taken = [heapq.heappop(self._free) for _ in range(min(num, len(self._free)))]
        taken += range(self.end, end)
        self.end = end
        return np.array(taken, dtype=np.int64)

    def give_back(self, blocks: Numbers) -> None:
        for block in blocks.tolist():
            heapq.heappush(self._free, block)

    def seat(self, num_readers: int) -> None:
        """Makes places for so many rows that read one block."""
        if num_readers > self.num_readers:
            self._resize(self.capacity, 1 << (num_readers - 1).bit_length())

    def compact(self) -> Numbers | None:
        """Moves the last blocks into holes once these are an eighth; returns where each block is now, or None."""
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
        """Texts that all their readers see, packed [N, H, K]: for each token its block and its position in its text."""
        block_N, position_N = upload([blocks, positions], self.position_BS.device)
        offset_N = position_N % BLOCK
        for layer, (k_NHK, v_NHK) in enumerate(layers):
            self.write(layer, block_N, offset_N, k_NHK, v_NHK)
        self.descent_BRS[block_N] = True
        self.position_BS[block_N, offset_N] = position_N.float()

    def write(self, layer: int, block_N: Tensor, offset_N: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> None:
        """Keys and values of entries, each to its place in its block."""
        keys, values = self.layers[layer]
        keys[block_N, :, offset_N] = k_NHK
        values[block_N, :, offset_N] = v_NHK

    def reorder(self, blocks_GM: Tensor, parents_GB: Tensor) -> None:
        """In each unit, sequence b goes on where sequence parents_GB[unit, b] was; `blocks_GM`: the units' blocks."""
        width, num_blocks = parents_GB.shape[1], blocks_GM.shape[1]
        descent_GMRS = self.descent_BRS[blocks_GM]
        parents_GMBS = parents_GB[:, None, :, None].expand(-1, num_blocks, -1, BLOCK)
        descent_GMRS[:, :, :width] = descent_GMRS.gather(2, parents_GMBS)
        self.descent_BRS[blocks_GM] = descent_GMRS

    def _resize(self, capacity: int, num_readers: int) -> None:
        """More room, a layer at a time, so that old and new stand side by side for one layer only."""
        self.version += 1
        self.descent_BRS = _enlarged(self.descent_BRS, (capacity, num_readers, BLOCK), filled=True)
        self.position_BS = _enlarged(self.position_BS, (capacity, BLOCK))
        for index, layer in enumerate(self.layers):
            if layer.shape[1] < capacity:
                self.layers[index] = _enlarged(layer, (2, capacity, *layer.shape[2:]))
        self.num_readers = num_readers


def bucket(number: int) -> int:
    """The number, or up to a quarter more, so that few different ones are left: four an octave."""
    step = 1 << max(0, number.bit_length() - 3)
    return -(-number // step) * step


def _enlarged(old: Tensor, shape: Sequence[int], filled: bool = False) -> Tensor:
    """The same values in a larger tensor of zeros, or of ones."""
    new = old.new_full(shape, filled)
    new[tuple(slice(size) for size in old.shape)] = old
    return new
