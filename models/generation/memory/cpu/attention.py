"""The decoder's attention context of one step: every running sequence asks its prompt and its own history.

It knows which packed rows belong to which memory and pool, no tokens and no weights. Encoder-decoder models ask prompts
by cross-attention. A decoder-only model's prompt is part of self-attention, which is then computed in parts and merged:
softmax over two sets of keys is the mean of the two softmaxes, weighted by their sums of exponentials.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchloom.models.generation.memory.cpu.entry_pool import EntryPool, PromptMemory


@dataclass(frozen=True)
class Part:
    """Rows of one cohort: units of a pool, and for each row the memories it reads."""

    pool: EntryPool
    memories: Sequence[Sequence[PromptMemory]]  # of each row; equal memories of neighbours are read once


class StepAttention:
    """Packed rows, the parts one after the other. `position_N`: of each row's new token."""

    def __init__(
        self, parts: Sequence[Part], position_N: Tensor, crosses: bool, alibi_slopes: Tensor | None = None
    ) -> None:
        self._crosses = crosses
        self._alibi_slopes = alibi_slopes
        self._pools: list[tuple[EntryPool, slice]] = []
        first = 0
        for part in parts:
            rows = slice(first, first + part.pool.num_units * part.pool.width)
            part.pool.begin_step(position_N[rows][:: part.pool.width])
            self._pools.append((part.pool, rows))
            first = rows.stop
        memories = [memories for part in parts for memories in part.memories]
        depth = max(map(len, memories), default=0)
        self._levels = [_runs([own[level] if level < len(own) else None for own in memories]) for level in range(depth)]
        self._shifts = [] if alibi_slopes is None else [self._shift(runs, position_N) for runs in self._levels]

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        q_NHK = _scaled(q_NHK)
        if self._crosses or not self._levels:
            return _joined([pool.attend(layer, q_NHK[rows], k_NHK[rows], v_NHK[rows]) for pool, rows in self._pools])
        halves = [pool.attend_in_part(layer, q_NHK[rows], k_NHK[rows], v_NHK[rows]) for pool, rows in self._pools]
        attended_NHK, log_sum_NH = (_joined(list(both)) for both in zip(*halves, strict=True))
        q_HNK = q_NHK.transpose(0, 1)
        for level, runs in enumerate(self._levels):
            other_NHK, other_sum_NH = self._read_in_part(layer, q_HNK, runs)
            if self._shifts:
                other_sum_NH = other_sum_NH + self._shifts[level]
            weight_NH1 = (other_sum_NH - log_sum_NH).sigmoid()[:, :, None].to(attended_NHK.dtype)
            attended_NHK = attended_NHK + weight_NH1 * (other_NHK - attended_NHK)
            log_sum_NH = torch.logaddexp(log_sum_NH, other_sum_NH)
        return attended_NHK

    def cross_attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        q_HNK = _scaled(q_NHK).transpose(0, 1)
        attended = [memory.attend(layer, q_HNK[:, rows]) for memory, rows in self._levels[0] if memory is not None]
        return torch.cat(attended, dim=1).transpose(0, 1)

    def _read_in_part(
        self, layer: int, q_HNK: Tensor, runs: Sequence[tuple[PromptMemory | None, slice]]
    ) -> tuple[Tensor, Tensor]:
        attended, log_sums = [], []
        for memory, rows in runs:
            q_HnK = q_HNK[:, rows]
            if memory is None:
                attended.append(torch.zeros_like(q_HnK))
                log_sums.append(q_HnK.new_full(q_HnK.shape[:2], -torch.inf, dtype=torch.float32))
            else:
                one, log_sum = memory.attend_in_part(layer, q_HnK)
                attended.append(one)
                log_sums.append(log_sum)
        return torch.cat(attended, dim=1).transpose(0, 1), torch.cat(log_sums, dim=1).transpose(0, 1)

    def _shift(self, runs: Sequence[tuple[PromptMemory | None, slice]], position_N: Tensor) -> Tensor:
        """A memory's ALiBi counts from the memory's end; this is the rest of the way to each query, [N, H]."""
        assert self._alibi_slopes is not None
        ends = [memory.end if memory else 0 for memory, rows in runs for _ in range(rows.stop - rows.start)]
        distance_N = torch.tensor(ends, device=position_N.device) - position_N
        return distance_N[:, None].float() * self._alibi_slopes


def _runs(memories: Sequence[PromptMemory | None]) -> list[tuple[PromptMemory | None, slice]]:
    """Neighbours with one memory as one slice of rows: beams and samples of a request, or requests with one prefix."""
    runs: list[tuple[PromptMemory | None, slice]] = []
    for row, memory in enumerate(memories):
        if runs and runs[-1][0] is memory:
            runs[-1] = (memory, slice(runs[-1][1].start, row + 1))
        else:
            runs.append((memory, slice(row, row + 1)))
    return runs


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _scaled(q_NHK: Tensor) -> Tensor:
    return q_NHK * q_NHK.shape[-1] ** -0.5
