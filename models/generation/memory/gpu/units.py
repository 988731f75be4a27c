"""The blocks of a cohort's generated tokens, by unit, on the host. It knows no model and no search.

A unit of two beams adds two entries a step, side by side, and takes a block when the last one is full. Which beam
descends from which entry is stored on the device, by the block store.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from batchloom.models.generation.memory.beginnings import Beginnings
from batchloom.models.generation.memory.gpu.blocks import BLOCK_SIZE, BlockStore
from batchloom.models.generation.memory.gpu.tables import BlockTable
from batchloom.models.transfers import Numbers


class BlockUnits:
    """G units of `width` sequences each, in the cohort's order."""

    def __init__(self, store: BlockStore, width: int) -> None:
        store.allow_readers(width)
        self.width = width
        self.blocks_GM = np.zeros((0, 0), dtype=np.int64)  # 0 beyond a unit's last block
        self.num_entries_G = np.zeros(0, dtype=np.int64)
        self.device_blocks_GM = torch.empty(0)  # the table that the last step read
        self._store = store

    @property
    def num_rows(self) -> int:
        return len(self.blocks_GM) * self.width

    def extend(self, num_new: int, beginnings: Beginnings | None = None) -> None:
        """Append units without entries, or with the entries that each one's sequences begin with."""
        self.blocks_GM = np.pad(self.blocks_GM, ((0, num_new), (0, 0)))
        self.num_entries_G = np.pad(self.num_entries_G, (0, num_new))
        if beginnings is not None and beginnings.longest:
            self._begin(beginnings)

    def _begin(self, beginnings: Beginnings) -> None:
        """Write the first entries of the last units: one a token, which all of a unit's sequences see."""
        length_U = np.array(beginnings.lengths, dtype=np.int64)  # U: the new units
        num_blocks_U = -(-length_U // BLOCK_SIZE)
        num_missing = max(0, num_blocks_U.max() - self.blocks_GM.shape[1])
        self.blocks_GM = np.pad(self.blocks_GM, ((0, 0), (0, num_missing)))
        blocks_UM = self.blocks_GM[-len(length_U) :]
        is_new_UM = np.arange(blocks_UM.shape[1]) < num_blocks_U[:, None]
        blocks_UM[is_new_UM] = self._store.take(int(is_new_UM.sum()))
        self.num_entries_G[-len(length_U) :] = length_U
        unit_N, entry_N = beginnings.places
        self._store.fill(blocks_UM[unit_N, entry_N // BLOCK_SIZE], entry_N, beginnings.layers)

    def keep(self, units: Sequence[int], erases: bool = False) -> None:
        """Drop all units but these, and free their blocks; `erases`: with zeros in them."""
        stays_G = np.zeros(len(self.blocks_GM), dtype=bool)
        stays_G[list(units)] = True
        left_GM = self.blocks_GM[~stays_G]
        left_M = left_GM[left_GM > 0]
        if erases:
            self._store.erase(left_M)
        self._store.free(left_M)
        self.blocks_GM, self.num_entries_G = self.blocks_GM[stays_G], self.num_entries_G[stays_G]

    def reorder(self, parents_GB: Tensor) -> None:
        """In each unit, let sequence b continue from sequence parents_GB[unit, b]."""
        self._store.reorder(self.device_blocks_GM, parents_GB)

    def grow(self) -> Numbers:
        """Make room for one entry a sequence; return where the entries go: blocks and offsets, [2, rows]."""
        entry_GB = self.num_entries_G[:, None] + np.arange(self.width)
        self.num_entries_G = self.num_entries_G + self.width
        num_blocks_G = -(-self.num_entries_G // BLOCK_SIZE)
        blocks_GM = np.zeros((len(num_blocks_G), num_blocks_G.max()), dtype=np.int64)
        common = min(blocks_GM.shape[1], self.blocks_GM.shape[1])
        blocks_GM[:, :common] = self.blocks_GM[:, :common]
        is_new_GM = (np.arange(blocks_GM.shape[1]) < num_blocks_G[:, None]) & (blocks_GM == 0)
        blocks_GM[is_new_GM] = self._store.take(int(is_new_GM.sum()))
        self.blocks_GM = blocks_GM
        block_GB = np.take_along_axis(blocks_GM, entry_GB // BLOCK_SIZE, axis=1)
        return np.stack((block_GB.ravel(), (entry_GB % BLOCK_SIZE).ravel()))

    def table(self) -> BlockTable:
        """Return the block table of each row's generated tokens."""
        places = np.tile(np.arange(self.width), len(self.blocks_GM))
        return BlockTable(self.blocks_GM.repeat(self.width, axis=0), self.num_entries_G.repeat(self.width), places)
