"""A cohort's entry pools by age, oldest first, so that requests that start do not get the room that old ones need.

Units stand in the order of their arrival, so each pool holds a run of them. Requests that start join the youngest pool
while it is young, and begin one otherwise; a pool that has grown to half of its elder's depth joins it. So there are a
handful at most, and no unit has more than about twice the room that it needs:

    depth 96    a b c            three requests that started together, and two later ones
    depth 32    d e              (in one pool all five would have 96)
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from torch import Tensor

from batchloom.models.generation.memory.cpu.attention import Part
from batchloom.models.generation.memory.cpu.entry_pool import CHUNK, EntryPool, PromptMemory


class AgedPools:
    """Keys and values of what a cohort's units said; `make` makes a pool without units."""

    def __init__(self, make: Callable[[], EntryPool]) -> None:
        self._make = make
        self.pools: list[EntryPool] = [make()]

    def extend(self, num_new: int) -> None:
        """Units that start, without entries."""
        youngest = self.pools[-1]
        if youngest.depth > 2 * CHUNK * youngest.width:
            self.pools.append(self._make())
        self.pools[-1].extend(num_new)

    def keep(self, units: Sequence[int]) -> None:
        """Forgets all units but these."""
        for pool, (first, stop) in zip(self.pools, self._runs(), strict=True):
            pool.keep([unit - first for unit in units if first <= unit < stop])
        self.pools = [pool for pool in self.pools if pool.num_units] or [self._make()]

    def reorder(self, parents_GB: Tensor) -> None:
        """In each unit, sequence b goes on where sequence parents_GB[unit, b] was."""
        for pool, (first, stop) in zip(self.pools, self._runs(), strict=True):
            pool.reorder(parents_GB[first:stop])

    def parts(self, memories: Sequence[Sequence[PromptMemory]]) -> list[Part]:
        """What attention of the next step reads; `memories`: of each row."""
        self._join_grown()
        width = self.pools[0].width
        return [
            Part(pool, memories[first * width : stop * width])
            for pool, (first, stop) in zip(self.pools, self._runs(), strict=True)
        ]

    def _join_grown(self) -> None:
        """Pools that have grown near the age of their elders become part of these."""
        for place in range(len(self.pools) - 1, 0, -1):
            elder, younger = self.pools[place - 1 : place + 1]
            if 2 * younger.depth > elder.depth:
                elder.join(younger)
                del self.pools[place]

    def _runs(self) -> list[tuple[int, int]]:
        """The units of each pool, as first and stop."""
        return list(pairwise(accumulate((pool.num_units for pool in self.pools), initial=0)))
