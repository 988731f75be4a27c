"""Keys and values of the tokens that sequences begin with behind an encoder. They know no model and no cache.

A decoder behind an encoder has its prompt in cross-attention; of its own tokens it begins with the start token alone,
or with an answer's prefix. These lie where generated tokens do: each cache copies them as a unit's first entries,
which all of the unit's sequences see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from torch import Tensor

from batchloom.models.transfers import Numbers, to_device

Layers = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Beginnings:
    """Packed keys and values [N, H, K] of each layer, of beginnings one after the other."""

    lengths: Sequence[int]
    """Tokens of each; 0: it has none."""
    layers: Layers

    def of(self, numbers: Sequence[int]) -> "Beginnings":
        """Return these beginnings, in this order; a number may come several times."""
        return Beginnings([self.lengths[number] for number in numbers], selected(self.layers, self.lengths, numbers))

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @property
    def places(self) -> tuple[Numbers, Numbers]:
        """Of each packed token, the number of its beginning, and its place in it: lengths 2, 0, 1 are 0 0 2, 0 1 0."""
        lengths = np.array(self.lengths, dtype=np.int64)
        number_N = np.repeat(np.arange(len(lengths)), lengths)
        return number_N, np.arange(len(number_N)) - np.repeat(lengths.cumsum() - lengths, lengths)


def selected(layers: Layers, lengths: Sequence[int], numbers: Sequence[int]) -> Layers:
    """Return packed keys and values of these sequences alone; `lengths`: of all that are packed."""
    if list(numbers) == list(range(len(lengths))):
        return layers
    stops = list(accumulate(lengths))
    index = [at for number in numbers for at in range(stops[number] - lengths[number], stops[number])]
    if not index:
        return []
    index_M = to_device(index, layers[0][0].device)
    return [(k_NHK.index_select(0, index_M), v_NHK.index_select(0, index_M)) for k_NHK, v_NHK in layers]
