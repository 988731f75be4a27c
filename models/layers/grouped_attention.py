"""Attention over groups of sequences of nearly equal length, one kernel call a group. It knows no weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from batchloom.models.transfers import queued

# With fewer keys than a vector register holds, torch's kernel for CPUs takes a query's largest score by comparisons,
# which skip NaN: where all scores are NaN it finds none, and returns zeros as for a query that sees no key.
FEW_KEYS = 16


@dataclass(frozen=True)
class Group:
    """One kernel call: `size` sequences, padded to num_queries and num_keys, at offsets into the padded tensors."""

    size: int
    num_queries: int
    num_keys: int
    first_query: int
    first_key: int
    key_lengths: list[int] | None  # None: no mask needed, every sequence has num_keys keys or the group is causal


class GroupedAttention:
    """Softmax attention of B sequences, in few kernel calls over groups of nearly equal length.

    Sequences of 5, 47, 46, 5 tokens become two calls: [2, 47] with one padded token, and [2, 5] with none.
    """

    # Of a group's positions one in 36 may be padding: 1.028 padded over real tokens at most, whatever the lengths.
    # Wider groups are fewer calls; an eighth of each row gave 1.12 to 1.31 on short texts (benchmarks/padding.py).
    PADDING_SHARE: ClassVar[int] = 36

    def __init__(self, query_lengths: Sequence[int], key_lengths: Sequence[int], causal: bool) -> None:
        assert len(query_lengths) == len(key_lengths)
        self.causal = causal
        members = _groups(query_lengths, key_lengths, self.PADDING_SHARE)
        self.groups: list[Group] = []
        self._query_index = _PadIndex(query_lengths, members)
        self._key_index = _PadIndex(key_lengths, members)
        first_query = first_key = 0
        for rows in members:
            longest_query = max(query_lengths[row] for row in rows)
            lengths = [key_lengths[row] for row in rows]
            # Right padding comes after every real query, so the causal mask already hides it.
            needs_mask = not causal and min(lengths) < max(lengths)
            group = Group(
                size=len(rows),
                num_queries=longest_query,
                num_keys=max(lengths),
                first_query=first_query,
                first_key=first_key,
                key_lengths=lengths if needs_mask else None,
            )
            self.groups.append(group)
            first_query += group.size * group.num_queries
            first_key += group.size * group.num_keys
        self._masks: dict[int, Tensor] = {}

    @property
    def num_positions(self) -> int:
        """Key positions that are computed, padding included."""
        return sum(group.size * group.num_keys for group in self.groups)

    def __call__(self, q_NHK: Tensor, k_SHK: Tensor, v_SHK: Tensor, scale: float) -> Tensor:
        q_PHK, k_PHK, v_PHK = self._query_index.pad(q_NHK), self._key_index.pad(k_SHK), self._key_index.pad(v_SHK)
        attended = [self._attend(i, group, q_PHK, k_PHK, v_PHK, scale) for i, group in enumerate(self.groups)]
        return self._query_index.unpad(attended[0] if len(attended) == 1 else torch.cat(attended))

    def _attend(self, i: int, group: Group, q_PHK: Tensor, k_PHK: Tensor, v_PHK: Tensor, scale: float) -> Tensor:
        q_GHTK = _rows(q_PHK, group.first_query, group.size, group.num_queries)
        k_GHSK = _rows(k_PHK, group.first_key, group.size, group.num_keys)
        v_GHSK = _rows(v_PHK, group.first_key, group.size, group.num_keys)
        attended_GHTK = F.scaled_dot_product_attention(
            q_GHTK,
            k_GHSK,
            v_GHSK,
            attn_mask=self._mask(i, group, q_PHK.device),
            is_causal=self.causal and group.num_queries > 1,
            scale=scale,
        )
        if group.num_keys < FEW_KEYS and q_PHK.device.type == "cpu":
            # 0, or NaN where a query or a key of the sequence is not finite.
            attended_GHTK = (
                attended_GHTK + (0 * q_GHTK).sum(-1, keepdim=True) + (0 * k_GHSK).sum((-2, -1), keepdim=True)
            )
        return attended_GHTK.transpose(1, 2).reshape(group.size * group.num_queries, *q_PHK.shape[1:])

    def _mask(self, i: int, group: Group, device: torch.device) -> Tensor | None:
        """Return a mask that is True where a key is real, [G, 1, 1, S]; made once and shared by all layers."""
        if group.key_lengths is None:
            return None
        if i not in self._masks:
            mask_GS = torch.arange(group.num_keys) < torch.tensor(group.key_lengths)[:, None]
            self._masks[i] = queued(mask_GS[:, None, None, :], device)
        return self._masks[i]


class DeviceGroups(GroupedAttention):
    """Groups for GPUs, where a call takes longer to start than a few short sequences to compute: a third is padding at
    most. 1,000 targets of some ten tokens are 2 groups, not 15."""

    PADDING_SHARE = 3


class _PadIndex:
    """Gathers packed tokens into groups padded to their longest member, and back."""

    def __init__(self, lengths: Sequence[int], members: list[list[int]]) -> None:
        self._lengths, self._members = lengths, members
        even = all(lengths[row] == lengths[rows[0]] for rows in members for row in rows)
        in_order = [row for rows in members for row in rows] == list(range(len(lengths)))
        self._is_identity = even and in_order
        self._indexes: tuple[Tensor, Tensor] | None = None

    def pad(self, x_NHK: Tensor) -> Tensor:
        return x_NHK if self._is_identity else x_NHK.index_select(0, self._to(x_NHK.device)[0])

    def unpad(self, x_PHK: Tensor) -> Tensor:
        return x_PHK if self._is_identity else x_PHK.index_select(0, self._to(x_PHK.device)[1])

    def _to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._indexes is None:
            pad_P, unpad_N = self._make()
            self._indexes = (queued(pad_P, device), queued(unpad_N, device))
        return self._indexes

    def _make(self) -> tuple[Tensor, Tensor]:
        lengths_B = torch.tensor(self._lengths)
        starts_B = lengths_B.cumsum(0) - lengths_B
        sources: list[Tensor] = []
        unpad_N = torch.empty(int(lengths_B.sum()), dtype=torch.long)
        first = 0
        for rows in self._members:
            lengths_G1, starts_G1 = lengths_B[rows, None], starts_B[rows, None]
            column_T = torch.arange(int(lengths_G1.max()))
            # Padding repeats the sequence's last token; any finite value would do.
            source_GT = starts_G1 + torch.minimum(column_T, lengths_G1 - 1)
            is_real_GT = column_T < lengths_G1
            unpad_N[source_GT[is_real_GT]] = first + is_real_GT.flatten().nonzero().flatten()
            sources.append(source_GT.flatten())
            first += source_GT.numel()
        return torch.cat(sources), unpad_N


def _groups(query_lengths: Sequence[int], key_lengths: Sequence[int], padding_share: int) -> list[list[int]]:
    """Return rows by group, the longest first; in each, at most one of `padding_share` positions is padding."""
    members: list[list[int]] = []
    num_queries = num_keys = longest_query = 0
    for row in sorted(range(len(key_lengths)), key=lambda i: (-key_lengths[i], -query_lengths[i])):
        num_queries, num_keys = num_queries + query_lengths[row], num_keys + key_lengths[row]
        longest_query = max(longest_query, query_lengths[row])
        if members:
            size, longest_key = len(members[-1]) + 1, key_lengths[members[-1][0]]
            most_padding = num_queries // padding_share, num_keys // padding_share
            if (
                size * longest_query - num_queries <= most_padding[0]
                and size * longest_key - num_keys <= most_padding[1]
            ):
                members[-1].append(row)
                continue
        members.append([row])
        num_queries, num_keys, longest_query = query_lengths[row], key_lengths[row], query_lengths[row]
    return members


def _rows(x_PHK: Tensor, first: int, size: int, length: int) -> Tensor:
    """Return one group's view of a padded tensor, in the kernel's layout: [G, H, length, K]."""
    return x_PHK[first : first + size * length].view(size, length, *x_PHK.shape[1:]).transpose(1, 2)
