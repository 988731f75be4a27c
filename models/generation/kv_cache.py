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

    memory: per layer keys and values [H, S, K] of the encoder, or none. Entries: [layers, 2, H, capacity, K].
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        num_sequences: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_sequences = num_sequences
        self.num_entries = 0
        self.memory: list[tuple[Tensor, Tensor]] = []
        self._entries = torch.empty(num_layers, 2, num_heads, 0, head_dim, dtype=dtype, device=device)
        self._layers: list[Tensor] = []
        # 0 where a sequence descends from an entry, -inf elsewhere. One sequence sees everything and needs none.
        self._bias_BE = torch.zeros(num_sequences, 0, dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        return self._entries.shape[3]

    def begin_step(self) -> None:
        """Makes room for one entry a sequence, and lets each sequence see its own."""
        first, last = self.num_entries, self.num_entries + self.num_sequences
        if last > self.capacity:
            self._pack()
            first, last = self.num_entries, self.num_entries + self.num_sequences
        if self.num_sequences > 1:
            self._bias_BE[:, first:last] = -torch.inf
            self._bias_BE[:, first:last].fill_diagonal_(0)
        self.num_entries = last

    def attend(self, layer: int, q_HBK: Tensor, kv_2HBK: Tensor) -> Tensor:
        """Writes this step's keys and values, and attends each sequence's scaled query to its history: [H, B, K]."""
        num_entries = self.num_entries
        kv_2HEK = self._layers[layer]
        kv_2HEK[:, :, num_entries - self.num_sequences : num_entries] = kv_2HBK
        k_HEK, v_HEK = kv_2HEK[:, :, :num_entries].unbind(0)
        if self.num_sequences == 1:
            scores_HBE = torch.bmm(q_HBK, k_HEK.transpose(1, 2))
        else:
            scores_HBE = torch.baddbmm(self._bias_BE[:, :num_entries], q_HBK, k_HEK.transpose(1, 2))
        return torch.bmm(scores_HBE.softmax(-1), v_HEK)

    def cross_attend(self, layer: int, q_HBK: Tensor) -> Tensor:
        """Attends each sequence's scaled query to the encoder: [H, B, K]."""
        k_HSK, v_HSK = self.memory[layer]
        return torch.bmm(torch.bmm(q_HBK, k_HSK.transpose(1, 2)).softmax(-1), v_HSK)

    def reorder(self, parents_B: Tensor) -> None:
        """Sequence b goes on where sequence parents_B[b] was. May shrink the number of sequences."""
        self.num_sequences = parents_B.shape[0]
        self._bias_BE = self._bias_BE[parents_B]

    def _pack(self) -> None:
        """Drops entries that no sequence descends from, and makes room for the next steps."""
        kept = self._entries[:, :, :, : self.num_entries]
        bias_BE = self._bias_BE[:, : self.num_entries]
        if self.num_sequences > 1:
            alive_E = (bias_BE == 0).any(0).nonzero().flatten()
            kept, bias_BE = kept.index_select(3, alive_E), bias_BE.index_select(1, alive_E)
        self.num_entries = kept.shape[3]
        room = CHUNK * self.num_sequences
        shape = list(kept.shape)
        shape[3] = self.num_entries + room
        self._entries = kept.new_empty(shape)
        self._entries[:, :, :, : self.num_entries] = kept
        self._bias_BE = torch.cat((bias_BE, bias_BE.new_zeros(self.num_sequences, room)), dim=1)
        self._layers = list(self._entries.unbind(0))


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
        q_HNK = _scaled(q_NHK)
        kv_2HNK = torch.stack((k_NHK, v_NHK)).transpose(1, 2)
        attended = [
            cache.attend(layer, q_HNK[:, rows], kv_2HNK[:, :, rows])
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
