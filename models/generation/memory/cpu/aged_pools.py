"""A cohort's entry pools by age, oldest first, so that new units do not reserve the room that old ones need.

All units of a pool have the same capacity. Units stand in order of arrival, so each pool holds a contiguous range of
them. New units join the youngest pool while it is young, and begin a pool otherwise; a pool that has grown to half of
its elder's depth is merged into it. So there are a handful of pools at most, and no unit has more than about twice the
room that it needs:

    depth 96    a b c            three requests that started together, and two later ones
    depth 32    d e              (in one pool all five would have 96)
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from torch import Tensor

from batchloom.models.generation.memory.beginnings import Beginnings
from batchloom.models.generation.memory.cpu.attention import PoolRows
from batchloom.models.generation.memory.cpu.entry_pool import CHUNK, EntryPool
from batchloom.models.generation.memory.prompt_memory import PromptMemory


class AgedPools:
    """Keys and values of the tokens that a cohort generated; `make` returns a pool without units."""

    def __init__(self, make: Callable[[], EntryPool]) -> None:
        self._make = make
        self.pools: list[EntryPool] = [make()]

    def extend(self, num_new: int, beginnings: Beginnings | None = None) -> None:
        """Append units without entries, or with the entries that each one's sequences begin with."""
        youngest = self.pools[-1]
        if youngest.depth > 2 * CHUNK * youngest.width:
            self.pools.append(self._make())
        self.pools[-1].extend(num_new, beginnings)

    def keep(self, units: Sequence[int], erases: bool = False) -> None:
        """Drop all units but these; `erases`: with zeros in place of what they leave."""
        for pool, (first, stop) in zip(self.pools, self._unit_ranges(), strict=True):
            pool.keep([unit - first for unit in units if first <= unit < stop], erases)
        self.pools = [pool for pool in self.pools if pool.num_units] or [self._make()]

    def reorder(self, parents_GB: Tensor) -> None:
        """In each unit, let sequence b continue from sequence parents_GB[unit, b]."""
        for pool, (first, stop) in zip(self.pools, self._unit_ranges(), strict=True):
            pool.reorder(parents_GB[first:stop])

    def rows(self, prompts: Sequence[Sequence[PromptMemory]]) -> list[PoolRows]:
        """Return what the next step's attention reads, pool by pool; `prompts`: the memories of each row's prompt."""
        self._merge_grown()
        width = self.pools[0].width
        return [
            PoolRows(pool, prompts[first * width : stop * width])
            for pool, (first, stop) in zip(self.pools, self._unit_ranges(), strict=True)
        ]

    def _merge_grown(self) -> None:
        """Merge each pool that has grown to more than half of its elder's depth into the elder."""
        for place in range(len(self.pools) - 1, 0, -1):
            elder, younger = self.pools[place - 1 : place + 1]
            if 2 * younger.depth > elder.depth:
                elder.join(younger)
                del self.pools[place]

    def _unit_ranges(self) -> list[tuple[int, int]]:
        """Return each pool's units, as first and stop."""
        return list(pairwise(accumulate((pool.num_units for pool in self.pools), initial=0)))
