"""Keys and values of generated tokens on a CPU, in a pool of entries. It knows no tokens, no prompt and no policy.

Each step appends one entry a sequence, and `descent` says which sequence descends from which entry. Reordering beams
permutes descent; no key moves.

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

from batchloom.models.generation.enlarging import enlarged
from batchloom.models.generation.memory.beginnings import Beginnings
from batchloom.models.generation.memory.prompt_memory import attend_in_part
from batchloom.models.transfers import to_device, upload

CHUNK = 8  # steps between two packings at most: copying costs a few percent of reading, and little room is unused


@dataclass(frozen=True)
class PoolStep:
    """One decode step over a pool of G units of B sequences: writes the step's keys and values, and attends."""

    keys_values: Tensor  # the pool's, [2, layer, G, H, E, K]
    place_G1: Tensor  # where the new entries go: the places, and
    entry_GB: Tensor  # the entry of each sequence in its place
    descent_GBE: Tensor  # bool: whether a sequence descends from an entry
    position_GE: Tensor
    bias_XBE: Tensor | None  # what all layers add to their scores; X: places times heads; None for a kernel
    unit_of_place_G: Tensor | None  # None where units stand in memory in their own order
    place_of_unit_G: Tensor | None

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        """Write the new keys and values; return scaled queries' attention over each sequence's history: [N, H, K]."""
        scores, values = self._write(layer, q_NHK, k_NHK, v_NHK)
        return self._in_units(torch.bmm(scores.softmax(-1), values))

    def attend_in_part(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> tuple[Tensor, Tensor]:
        """As attend, with the log-sum-exp of the scores [N, H], by which partial results are merged."""
        attended, log_sum = attend_in_part(*self._write(layer, q_NHK, k_NHK, v_NHK))
        return self._in_units(attended), self._in_units(log_sum[:, :, None])[:, :, 0]

    def _write(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values; return scores [G * H, B, E] and values [G * H, E, K], in order of places."""
        q_GBHK, k_GBHK, v_GBHK = (self._in_places(x_NHK) for x_NHK in (q_NHK, k_NHK, v_NHK))
        k_GHEK, v_GHEK = self.keys_values[:, layer]
        k_GHEK[self.place_G1, :, self.entry_GB] = k_GBHK
        v_GHEK[self.place_G1, :, self.entry_GB] = v_GBHK
        assert self.bias_XBE is not None, "this step was begun for a kernel"
        q_XBK = q_GBHK.transpose(1, 2).reshape(-1, self.entry_GB.shape[1], q_NHK.shape[2])
        return torch.baddbmm(self.bias_XBE, q_XBK, k_GHEK.flatten(0, 1).transpose(1, 2)), v_GHEK.flatten(0, 1)

    def _in_places(self, x_NHK: Tensor) -> Tensor:
        x_GBHK = x_NHK.unflatten(0, (-1, self.entry_GB.shape[1]))
        return x_GBHK if self.unit_of_place_G is None else x_GBHK.index_select(0, self.unit_of_place_G)

    def _in_units(self, x_XBK: Tensor) -> Tensor:
        x_GBHK = x_XBK.unflatten(0, (-1, self.keys_values.shape[3])).transpose(1, 2)
        if self.place_of_unit_G is not None:
            x_GBHK = x_GBHK.index_select(0, self.place_of_unit_G)
        return x_GBHK.flatten(0, 1)


class EntryPool:
    """Generated tokens' keys and values for G units of `width` sequences: a search's beams, or one sequence each.

    Units are numbered in the order in which they are added and kept. In memory each has a place, [layer, G, H, E, K]; a
    new unit takes the place of one that left, so that the pool stays dense and little is moved.
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
        """The most entries that a unit has."""
        return max((self._num_entries[place] for place in self._places), default=0)

    @property
    def capacity(self) -> int:
        """Entries that each place has room for."""
        return self._keys_values.shape[4]

    @property
    def num_bytes(self) -> int:
        """Bytes allocated; places that were dropped stay allocated until the next packing."""
        return self._keys_values.untyped_storage().nbytes()

    @property
    def num_live_entries(self) -> int:
        """Entries that a sequence of a unit descends from."""
        return int(self._descent_GBE[self._places].any(1).sum())

    def extend(self, num_new: int, beginnings: Beginnings | None = None) -> None:
        """Append units without entries, or with the entries that each one's sequences begin with."""
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
        if beginnings is not None and beginnings.longest:
            self._begin(self._places[-num_new:], beginnings)

    def _begin(self, places: Sequence[int], beginnings: Beginnings) -> None:
        """Write the first entries of units that have none yet: one a token, which all of a unit's sequences see."""
        self._resize(len(self._num_entries), max(self.capacity, beginnings.longest))
        number_N, entry_N = upload(beginnings.places, self._position_GE.device)
        place_N = to_device(places, self._position_GE.device)[number_N]
        for (k_GHEK, v_GHEK), (k_NHK, v_NHK) in zip(self._keys_values.transpose(0, 1), beginnings.layers, strict=True):
            k_GHEK[place_N, :, entry_N] = k_NHK
            v_GHEK[place_N, :, entry_N] = v_NHK
        self._descent_GBE[place_N, :, entry_N] = True
        self._position_GE[place_N, entry_N] = entry_N
        for place, length in zip(places, beginnings.lengths, strict=True):
            self._num_entries[place] = length

    def join(self, other: "EntryPool") -> None:
        """Append the units of another pool, with their entries."""
        first, num_others = len(self._num_entries), len(other._num_entries)
        self._resize(first + num_others, max(self.capacity, other.capacity))
        self._keys_values[:, :, first:, :, : other.capacity] = other._keys_values
        self._descent_GBE[first:, :, : other.capacity] = other._descent_GBE
        self._position_GE[first:, : other.capacity] = other._position_GE
        self._num_entries += other._num_entries
        self._places += [first + place for place in other._places]
        self._free += [first + place for place in other._free]

    def keep(self, units: Sequence[int], erases: bool = False) -> None:
        """Drop all units but these; `erases`: with zeros in place of what they leave, which was not finite."""
        kept = [self._places[unit] for unit in units]
        left = sorted(set(self._places) - set(kept))
        if erases:
            self._keys_values[:, :, left] = 0
        self._free += left
        self._places = kept

    def reorder(self, parents_GB: Tensor) -> None:
        """In each unit, let sequence b continue from sequence parents_GB[unit, b]."""
        parents_GB = parents_GB[self._unit_of_place()]
        self._descent_GBE = self._descent_GBE.gather(1, parents_GB[:, :, None].expand_as(self._descent_GBE))

    @property
    def dtype(self) -> torch.dtype:
        return self._keys_values.dtype

    @property
    def places(self) -> Sequence[int]:
        """Where each unit stands in memory, once a step has begun."""
        return self._places

    def begin_step(self, position_G: Tensor, for_kernel: bool = False) -> PoolStep:
        """Make room for one entry a sequence, and return the step. `position_G`: of each unit's new token.

        `for_kernel`: without the bias, as a kernel reads descent and positions.
        """
        self._fill_holes()
        room = self.capacity - max(self._num_entries)
        has_left = room > 2 * CHUNK * self.width or self.num_bytes > 1.25 * self._keys_values.nbytes
        if room < self.width or has_left:
            self._pack()
        device = self._position_GE.device
        entry_G1 = torch.tensor(self._num_entries, device=device)[:, None]
        entry_GB = entry_G1 + torch.arange(self.width, device=device)
        place_G1 = torch.arange(self.num_units, device=device)[:, None]
        self._descent_GBE.scatter_(2, entry_GB[:, None].expand(-1, self.width, -1), False)
        self._descent_GBE.scatter_(2, entry_GB[:, :, None], True)
        self._num_entries = [number + self.width for number in self._num_entries]
        unit_G = self._unit_of_place()
        self._position_GE[place_G1, entry_GB] = position_G[unit_G][:, None]
        in_order = list(range(self.num_units)) == self._places
        return PoolStep(
            self._keys_values,
            place_G1,
            entry_GB,
            self._descent_GBE,
            self._position_GE,
            None if for_kernel else self._bias(position_G[unit_G]),
            unit_of_place_G=None if in_order else unit_G,
            place_of_unit_G=None if in_order else torch.tensor(self._places, device=device),
        )

    def _unit_of_place(self) -> Tensor:
        units = sorted(range(self.num_units), key=self._places.__getitem__)
        return torch.tensor(units, dtype=torch.long, device=self._position_GE.device)

    def _bias(self, position_G: Tensor) -> Tensor:
        """Return what all layers add to their scores, [G * H, B, E]: -inf where a sequence has no such ancestor."""
        bias_GBE = torch.where(self._descent_GBE, 0.0, -torch.inf)
        bias_GHBE = bias_GBE[:, None].expand(-1, self._num_heads, -1, -1)
        if self._alibi_slopes is not None:
            # Distances, not positions: small where weights are large, and bfloat16 is precise for small numbers.
            distance_GE = (self._position_GE - position_G[:, None]).float()
            bias_GHBE = bias_GHBE + self._alibi_slopes[:, None, None] * distance_GE[:, None, None]
        return bias_GHBE.to(self._keys_values.dtype).flatten(0, 1)

    def _fill_holes(self) -> None:
        """Move the last places into free ones, and drop the free places that remain at the end."""
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
        """Drop entries that no sequence descends from, and make room for the next steps."""
        alive_GE = self._descent_GBE.any(1)
        num_alive = alive_GE.sum(1).tolist()
        room = max(num_alive, default=0)
        new = self.width * max(CHUNK // 2, min(CHUNK, room // (4 * self.width)))
        if room:
            # Live entries in their order, then copies of the first: entries that are masked must still be finite.
            order_GE = F.pad((~alive_GE).byte().argsort(dim=1, stable=True)[:, :room], (0, new))
            self._keys_values = _entries(self._keys_values, order_GE)
            self._descent_GBE = self._descent_GBE.gather(2, order_GE[:, None].expand(-1, self.width, -1))
            self._descent_GBE[:, :, room:] = False
            self._position_GE = self._position_GE.gather(1, order_GE)
        else:
            self._resize(len(num_alive), new)
        self._num_entries = num_alive

    def _resize(self, num_places: int, capacity: int) -> None:
        """Change the number of places and their capacity. New entries are zeros: masked ones must still be finite."""
        num_kinds, num_layers, _, num_heads, _, head_dim = self._keys_values.shape
        shape = (num_kinds, num_layers, num_places, num_heads, capacity, head_dim)
        self._keys_values = enlarged(self._keys_values, shape)
        self._descent_GBE = enlarged(self._descent_GBE, (num_places, self.width, capacity))
        self._position_GE = enlarged(self._position_GE, (num_places, capacity))


def _entries(keys_values: Tensor, order_GE: Tensor) -> Tensor:
    """Select entries of each place of [2, L, G, H, E, K] with one copy: as rows of K numbers, by their address."""
    *outer, _, head_dim = keys_values.shape
    row = torch.zeros((), dtype=torch.long, device=order_GE.device)
    for size, stride in zip(outer, keys_values.stride(), strict=False):
        row = row[..., None] + torch.arange(size, device=row.device) * (stride // head_dim)
    row_GE = row[..., None] + order_GE[:, None]  # [2, L, G, H, E]
    num_rows = keys_values.untyped_storage().nbytes() // keys_values.itemsize // head_dim
    rows = keys_values.as_strided((num_rows, head_dim), (head_dim, 1))
    return rows.index_select(0, row_GE.flatten()).view(*row_GE.shape, head_dim)
