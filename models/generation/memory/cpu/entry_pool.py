"""Keys and values of running sequences: prompts once a request, new tokens in a pool. It knows no tokens and no policy.

A request's sequences share what they have in common. A prompt (an encoder's output, or what a decoder-only model read)
is written once and never moves. New tokens are entries of a pool: each step appends one entry a sequence, and `descent`
says which sequence descends from which entry. Reordering beams permutes descent; no key moves.

    after three steps of two beams, where beam 1 took over beam 0's history at step 2:

    entry        a0 b0 a1 b1 a2 b2        a token of beam a or b at steps 0, 1, 2
    beam 0       x     x     x            sees a0 a1 a2
    beam 1       x     x        x         sees a0 a1 b2;   b0 and b1 have no descendants: the next packing drops them
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 8  # steps between two packings at most: copying is a few percent of reading, and little room is held in vain


@dataclass(frozen=True, eq=False)
class PromptMemory:
    """Keys and values [H, S, K] of S prompt tokens in each decoder layer; read by any number of sequences at once.

    `alibi_H1S`: slope * (position - first position after the memory), where the model wants ALiBi.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    num_tokens: int
    alibi_H1S: Tensor | None = None
    end: int = 0
    """The first position after the memory."""

    def attend(self, layer: int, q_HNK: Tensor) -> Tensor:
        """Scaled queries of N sequences over the memory: [H, N, K]."""
        k_HSK, v_HSK = self.layers[layer]
        return torch.bmm(self._scores(q_HNK, k_HSK).softmax(-1), v_HSK)

    def attend_in_part(self, layer: int, q_HNK: Tensor) -> tuple[Tensor, Tensor]:
        """As attend, with the logarithm of the sum of exponentials [H, N], by which parts are merged."""
        k_HSK, v_HSK = self.layers[layer]
        return attend_in_part(self._scores(q_HNK, k_HSK), v_HSK)

    def _scores(self, q_HNK: Tensor, k_HSK: Tensor) -> Tensor:
        k_HKS = k_HSK.transpose(1, 2)
        return torch.bmm(q_HNK, k_HKS) if self.alibi_H1S is None else torch.baddbmm(self.alibi_H1S, q_HNK, k_HKS)


def attend_in_part(scores_HTS: Tensor, v_HSK: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over some of the keys, and the logarithm of the sum of exponentials, [H, T] in float32."""
    weight_HTS = scores_HTS.softmax(-1)
    # exp(largest score) / sum is the largest weight: the logarithm of the sum without another pass of exponentials.
    log_sum_HT = scores_HTS.amax(-1).float() - weight_HTS.amax(-1).float().log()
    return torch.bmm(weight_HTS, v_HSK), log_sum_HT


class EntryPool:
    """New tokens' keys and values for G units of `width` sequences each: beams of one search, or single sequences.

    Units are known by their order, in which they are added and kept. In memory each has a place, [layer, G, H, E, K]; a
    unit that comes takes the place of one that left, so that the pool stays dense and little is moved.
    """

    def __init__(
        self, num_layers: int, num_heads: int, head_dim: int, width: int, like: Tensor, alibi_slopes: Tensor | None
    ) -> None:
        self.width = width
        self._num_heads = num_heads
        self._alibi_slopes = alibi_slopes
        self._keys_values = like.new_zeros(2, num_layers, 0, num_heads, 0, head_dim)
        self._places: list[int] = []  # of each unit
        self._num_entries: list[int] = []  # of each place
        self._descent_GBE = like.new_zeros(0, width, 0, dtype=torch.bool)
        self._position_GE = torch.zeros(0, 0, dtype=torch.long, device=like.device)
        self._free: list[int] = []

    @property
    def num_units(self) -> int:
        return len(self._places)

    @property
    def depth(self) -> int:
        """Entries of the unit that has most."""
        return max((self._num_entries[place] for place in self._places), default=0)

    @property
    def capacity(self) -> int:
        """Entries that each place has room for."""
        return self._keys_values.shape[4]

    @property
    def num_bytes(self) -> int:
        """What is held in memory; places that were dropped are held until the next packing."""
        return self._keys_values.untyped_storage().nbytes()

    @property
    def num_live_entries(self) -> int:
        """Entries that a sequence of a unit descends from."""
        return int(self._descent_GBE[self._places].any(1).sum())

    def extend(self, num_new: int) -> None:
        """Units that start, without entries."""
        num_missing = num_new - len(self._free)
        if num_missing > 0:
            first = len(self._num_entries)
            self._free += range(first, first + num_missing)
            self._num_entries += [0] * num_missing
            self._resize(first + num_missing, self.capacity)
        for _ in range(num_new):
            place = self._free.pop()
            self._num_entries[place] = 0
            self._descent_GBE[place] = False
            self._places.append(place)

    def join(self, other: "EntryPool") -> None:
        """The units of another pool come after the own ones, with their entries."""
        first, num_others = len(self._num_entries), len(other._num_entries)
        self._resize(first + num_others, max(self.capacity, other.capacity))
        self._keys_values[:, :, first:, :, : other.capacity] = other._keys_values
        self._descent_GBE[first:, :, : other.capacity] = other._descent_GBE
        self._position_GE[first:, : other.capacity] = other._position_GE
        self._num_entries += other._num_entries
        self._places += [first + place for place in other._places]
        self._free += [first + place for place in other._free]

    def keep(self, units: Sequence[int]) -> None:
        """Forgets all units but these."""
        kept = [self._places[unit] for unit in units]
        self._free += sorted(set(self._places) - set(kept))
        self._places = kept

    def reorder(self, parents_GB: Tensor) -> None:
        """In each unit, sequence b goes on where sequence parents_GB[unit, b] was."""
        parents_GB = parents_GB[self._unit_of_place()]
        self._descent_GBE = self._descent_GBE.gather(1, parents_GB[:, :, None].expand_as(self._descent_GBE))

    def begin_step(self, position_G: Tensor) -> None:
        """Makes room for one entry a sequence; `position_G`: the position of each unit's new token."""
        self._fill_holes()
        room = self.capacity - max(self._num_entries)
        has_left = room > 2 * CHUNK * self.width or self.num_bytes > 1.25 * self._keys_values.nbytes
        if room < self.width or has_left:
            self._pack()
        device = self._position_GE.device
        entry_G1 = torch.tensor(self._num_entries, device=device)[:, None]
        self._entry_GB = entry_G1 + torch.arange(self.width, device=device)
        self._place_G1 = torch.arange(self.num_units, device=device)[:, None]
        self._descent_GBE.scatter_(2, self._entry_GB[:, None].expand(-1, self.width, -1), False)
        self._descent_GBE.scatter_(2, self._entry_GB[:, :, None], True)
        self._num_entries = [number + self.width for number in self._num_entries]
        unit_G = self._unit_of_place()
        in_order = list(range(self.num_units)) == self._places
        self._order = None if in_order else (unit_G, torch.tensor(self._places, device=device))
        self._position_GE[self._place_G1, self._entry_GB] = position_G[unit_G][:, None]
        self._bias = self._make_bias(position_G[unit_G])

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        """Writes this step's keys and values; scaled queries over each sequence's own history: [N, H, K]."""
        scores, values = self._write(layer, q_NHK, k_NHK, v_NHK)
        return self._in_units(torch.bmm(scores.softmax(-1), values))

    def attend_in_part(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> tuple[Tensor, Tensor]:
        """As attend, with the logarithm of the sum of exponentials [N, H]."""
        attended, log_sum = attend_in_part(*self._write(layer, q_NHK, k_NHK, v_NHK))
        return self._in_units(attended), self._in_units(log_sum[:, :, None])[:, :, 0]

    def _write(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [G * H, B, E] and values [G * H, E, K], in order of places."""
        q_GBHK, k_GBHK, v_GBHK = (self._in_places(x_NHK) for x_NHK in (q_NHK, k_NHK, v_NHK))
        k_GHEK, v_GHEK = self._keys_values[:, layer]
        k_GHEK[self._place_G1, :, self._entry_GB] = k_GBHK
        v_GHEK[self._place_G1, :, self._entry_GB] = v_GBHK
        q_XBK = q_GBHK.transpose(1, 2).reshape(-1, self.width, q_NHK.shape[2])
        return torch.baddbmm(self._bias, q_XBK, k_GHEK.flatten(0, 1).transpose(1, 2)), v_GHEK.flatten(0, 1)

    def _in_places(self, x_NHK: Tensor) -> Tensor:
        x_GBHK = x_NHK.unflatten(0, (-1, self.width))
        return x_GBHK if self._order is None else x_GBHK.index_select(0, self._order[0])

    def _in_units(self, x_XBK: Tensor) -> Tensor:
        x_GBHK = x_XBK.unflatten(0, (-1, self._num_heads)).transpose(1, 2)
        return (x_GBHK if self._order is None else x_GBHK.index_select(0, self._order[1])).flatten(0, 1)

    def _unit_of_place(self) -> Tensor:
        units = sorted(range(self.num_units), key=self._places.__getitem__)
        return torch.tensor(units, dtype=torch.long, device=self._position_GE.device)

    def _make_bias(self, position_G: Tensor) -> Tensor:
        """What all layers add to their scores, [G * H, B, E]: -inf where a sequence does not descend from an entry."""
        bias_GBE = torch.where(self._descent_GBE, 0.0, -torch.inf)
        bias_GHBE = bias_GBE[:, None].expand(-1, self._num_heads, -1, -1)
        if self._alibi_slopes is not None:
            # Distances, not positions: small where weights are large, and bfloat16 holds small numbers well.
            distance_GE = (self._position_GE - position_G[:, None]).float()
            bias_GHBE = bias_GHBE + self._alibi_slopes[:, None, None] * distance_GE[:, None, None]
        return bias_GHBE.to(self._keys_values.dtype).flatten(0, 1)

    def _fill_holes(self) -> None:
        """Moves the last places into those that are free, and drops what is left at the end."""
        if not self._free:
            return
        num_units = self.num_units
        holes = [place for place in self._free if place < num_units]
        for unit, place in enumerate(self._places):
            if place >= num_units:
                hole = holes.pop()
                self._keys_values[:, :, hole] = self._keys_values[:, :, place]
                self._descent_GBE[hole] = self._descent_GBE[place]
                self._position_GE[hole] = self._position_GE[place]
                self._num_entries[hole] = self._num_entries[place]
                self._places[unit] = hole
        self._free = []
        self._num_entries = self._num_entries[:num_units]
        self._keys_values = self._keys_values[:, :, :num_units]
        self._descent_GBE, self._position_GE = self._descent_GBE[:num_units], self._position_GE[:num_units]

    def _pack(self) -> None:
        """Drops entries that no sequence descends from, and makes room for the next steps."""
        alive_GE = self._descent_GBE.any(1)
        num_alive = alive_GE.sum(1).tolist()
        room = max(num_alive, default=0)
        new = self.width * max(CHUNK // 2, min(CHUNK, room // (4 * self.width)))
        if room:
            # The living in their order, and beyond them the first again: what no sequence sees must be a number too.
            order_GE = F.pad((~alive_GE).byte().argsort(dim=1, stable=True)[:, :room], (0, new))
            self._keys_values = _entries(self._keys_values, order_GE)
            self._descent_GBE = self._descent_GBE.gather(2, order_GE[:, None].expand(-1, self.width, -1))
            self._descent_GBE[:, :, room:] = False
            self._position_GE = self._position_GE.gather(1, order_GE)
        else:
            self._resize(len(num_alive), new)
        self._num_entries = num_alive

    def _resize(self, num_places: int, capacity: int) -> None:
        """The same entries among zeros: what no sequence sees must still be a number."""
        self._keys_values = _enlarged(self._keys_values, (2, 4), (num_places, capacity))
        self._descent_GBE = _enlarged(self._descent_GBE, (0, 2), (num_places, capacity))
        self._position_GE = _enlarged(self._position_GE, (0, 1), (num_places, capacity))


def _entries(keys_values: Tensor, order_GE: Tensor) -> Tensor:
    """Some entries of each place, [2, L, G, H, E, K], copied once: as rows of K numbers, by their place in memory."""
    *outer, _, head_dim = keys_values.shape
    row = torch.zeros((), dtype=torch.long, device=order_GE.device)
    for size, stride in zip(outer, keys_values.stride(), strict=False):
        row = row[..., None] + torch.arange(size, device=row.device) * (stride // head_dim)
    row_GE = row[..., None] + order_GE[:, None]  # [2, L, G, H, E]
    num_rows = keys_values.untyped_storage().nbytes() // keys_values.itemsize // head_dim
    rows = keys_values.as_strided((num_rows, head_dim), (head_dim, 1))
    return rows.index_select(0, row_GE.flatten()).view(*row_GE.shape, head_dim)


def _enlarged(old: Tensor, dims: tuple[int, int], sizes: tuple[int, int]) -> Tensor:
    """The same values in a tensor of zeros that has other sizes in two dimensions; what does not fit is dropped."""
    shape = list(old.shape)
    for dim, size in zip(dims, sizes, strict=True):
        shape[dim] = size
    new = old.new_zeros(shape)
    common = tuple(slice(min(a, b)) for a, b in zip(old.shape, shape, strict=True))
    new[common] = old[common]
    return new
