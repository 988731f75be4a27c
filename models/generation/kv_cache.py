"""Keys and values of running requests, and attention through them. It knows no tokens, no weights and no policy.

One request's sequences share everything that they have in common. `memory` is an encoder's keys and values: written
once, read by all sequences as the query rows of one product. `entries` are the decoder's own: each step appends one
entry a sequence, and a bias says which sequence descends from which entry. Reordering beams permutes the bias's rows;
no key moves.

    after three steps of two beams, where beam 1 took over beam 0's history at step 2:

    entry        a0 b0 a1 b1 a2 b2        a token of beam a or b at steps 0, 1, 2
    beam 0       x     x     x            sees a0 a1 a2
    beam 1       x     x        x         sees a0 a1 b2;   b0 and b1 have no descendants: the next packing drops them
"""

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK = (
    16  # steps between two packings: long enough that copying is a few percent of reading, short enough to waste little
)


class RequestCache:
    """One request's keys and values in all decoder layers, for `num_sequences` sequences.

    `memory`: per layer an encoder's keys and values [H, S, K]; empty for decoder-only models. `alibi_slopes` (float32
    [H]) adds slope * (key position - query position) to the scores. Entries lie in [2, layers, H, capacity, K].
    """

    def __init__(
        self,
        num_sequences: int,
        memory: Sequence[tuple[Tensor, Tensor]],
        prompt_2LHEK: Tensor,
        alibi_slopes: Tensor | None = None,
    ) -> None:
        self.num_sequences = num_sequences
        self.num_tokens = self.num_entries = prompt_2LHEK.shape[3]
        self.memory = memory
        self._alibi_slopes = alibi_slopes
        self._entries_2LHEK = prompt_2LHEK
        self._layers: list[tuple[Tensor, Tensor]] = []
        # 0 where a sequence descends from an entry, -inf elsewhere; a prompt's entries are everybody's.
        self._descent_BE = prompt_2LHEK.new_zeros(num_sequences, self.num_entries)
        self._position_E = torch.arange(self.num_entries, device=prompt_2LHEK.device)
        self._bias: Tensor | None = None

    @property
    def capacity(self) -> int:
        return self._entries_2LHEK.shape[3]

    @property
    def num_bytes(self) -> int:
        """All memory that this cache holds."""
        return self._entries_2LHEK.nbytes + sum(k_HSK.nbytes + v_HSK.nbytes for k_HSK, v_HSK in self.memory)

    def begin_step(self) -> None:
        """Makes room for one entry a sequence, and lets each sequence see its own."""
        if self.num_entries + self.num_sequences > self.capacity or not self._layers:
            self._pack()
        new = slice(self.num_entries, self.num_entries + self.num_sequences)
        if self.num_sequences > 1:
            self._descent_BE[:, new] = -torch.inf
            self._descent_BE[:, new].fill_diagonal_(0)
        self.num_entries = new.stop
        if self._alibi_slopes is not None:
            self._position_E[new] = self.num_tokens
        self._bias = self._make_bias()
        self.num_tokens += 1

    def attend(self, layer: int, q_HBK: Tensor, k_HBK: Tensor, v_HBK: Tensor) -> Tensor:
        """Writes this step's keys and values, and attends each sequence's scaled query to its history: [H, B, K]."""
        num_entries = self.num_entries
        k_HEK, v_HEK = self._layers[layer]
        k_HEK[:, num_entries - self.num_sequences : num_entries] = k_HBK
        v_HEK[:, num_entries - self.num_sequences : num_entries] = v_HBK
        k_HKE = k_HEK[:, :num_entries].transpose(1, 2)
        scores_HBE = torch.bmm(q_HBK, k_HKE) if self._bias is None else torch.baddbmm(self._bias, q_HBK, k_HKE)
        return torch.bmm(scores_HBE.softmax(-1), v_HEK[:, :num_entries])

    def cross_attend(self, layer: int, q_HBK: Tensor) -> Tensor:
        """Attends each sequence's scaled query to the encoder: [H, B, K]."""
        k_HSK, v_HSK = self.memory[layer]
        return torch.bmm(torch.bmm(q_HBK, k_HSK.transpose(1, 2)).softmax(-1), v_HSK)

    def reorder(self, parents_B: Tensor) -> None:
        """Sequence b goes on where sequence parents_B[b] was. Fewer parents than sequences: the others are gone."""
        self.num_sequences = parents_B.shape[0]
        self._descent_BE = self._descent_BE[parents_B]

    def _make_bias(self) -> Tensor | None:
        """What this step adds to the scores of all layers, [B, E] or [H, B, E]; None if that is nothing."""
        descent_BE = self._descent_BE[:, : self.num_entries] if self.num_sequences > 1 else None
        if self._alibi_slopes is None:
            return descent_BE
        # Distances, not positions: they are small where the weights are large, and bfloat16 holds small numbers well.
        distance_E = (self._position_E[: self.num_entries] - self.num_tokens).float()
        alibi_H1E = (self._alibi_slopes[:, None, None] * distance_E).to(self._descent_BE.dtype)
        return alibi_H1E if descent_BE is None else alibi_H1E + descent_BE

    def _pack(self) -> None:
        """Drops entries that no sequence descends from, and makes room for the next steps."""
        entries = self._entries_2LHEK[:, :, :, : self.num_entries]
        descent_BE, position_E = self._descent_BE[:, : self.num_entries], self._position_E[: self.num_entries]
        if self.num_sequences > 1 and self._layers:
            alive_E = (descent_BE == 0).any(0).nonzero()[:, 0]
            entries, descent_BE, position_E = entries[:, :, :, alive_E], descent_BE[:, alive_E], position_E[alive_E]
        self.num_entries = entries.shape[3]
        room = CHUNK * self.num_sequences
        self._entries_2LHEK = entries.new_empty((*entries.shape[:3], self.num_entries + room, entries.shape[4]))
        self._entries_2LHEK[:, :, :, : self.num_entries] = entries
        self._layers = list(zip(*(half.unbind(0) for half in self._entries_2LHEK.unbind(0)), strict=True))
        self._descent_BE = torch.cat((descent_BE, descent_BE.new_zeros(self.num_sequences, room)), dim=1)
        self._position_E = torch.cat((position_E, position_E.new_zeros(room)))


class CachedAttention:
    """The decoder's attention context of one step: packed rows, the sequences of each cache one after the other."""

    def __init__(self, caches: Sequence[RequestCache]) -> None:
        self._caches = caches
        self._rows: list[slice] = []
        first = 0
        for cache in caches:
            cache.begin_step()
            self._rows.append(slice(first, first + cache.num_sequences))
            first += cache.num_sequences

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        q_HNK, k_HNK, v_HNK = _scaled(q_NHK), k_NHK.transpose(0, 1), v_NHK.transpose(0, 1)
        attended = [
            cache.attend(layer, q_HNK[:, rows], k_HNK[:, rows], v_HNK[:, rows])
            for cache, rows in zip(self._caches, self._rows, strict=True)
        ]
        return torch.cat(attended, dim=1).transpose(0, 1)

    def cross_attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        q_HNK = _scaled(q_NHK)
        attended = [
            cache.cross_attend(layer, q_HNK[:, rows]) for cache, rows in zip(self._caches, self._rows, strict=True)
        ]
        return torch.cat(attended, dim=1).transpose(0, 1)


def _scaled(q_NHK: Tensor) -> Tensor:
    return q_NHK.transpose(0, 1) * q_NHK.shape[-1] ** -0.5
