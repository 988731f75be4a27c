"""The attention context of one decode step on a CPU: each sequence attends to its prompt and to its own history.

It knows which packed rows belong to which memory and pool, no tokens and no weights. Encoder-decoder models reach
prompts by cross-attention. A decoder-only model's prompt is part of self-attention, which is then computed in parts and
merged: softmax over two sets of keys is the mean of the two softmaxes, weighted by their sums of exponentials.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchloom.models.generation.memory.cpu.entry_pool import EntryPool, PoolStep
from batchloom.models.generation.memory.prompt_memory import PromptMemory


@dataclass(frozen=True)
class PoolRows:
    """Rows of one cohort: the units of a pool, and for each row the memories of its prompt."""

    pool: EntryPool
    prompts: Sequence[Sequence[PromptMemory]]  # of each row; equal memories of adjacent rows are read once


class StepAttention:
    """Attention of packed rows, one pool's after the other. `position_N`: the position of each row's new token."""

    def __init__(
        self, pool_rows: Sequence[PoolRows], position_N: Tensor, crosses: bool, alibi_slopes: Tensor | None = None
    ) -> None:
        self._crosses = crosses
        self._alibi_slopes = alibi_slopes
        self._steps: list[tuple[PoolStep, slice]] = []
        first = 0
        for own in pool_rows:
            rows = slice(first, first + own.pool.num_units * own.pool.width)
            self._steps.append((own.pool.begin_step(position_N[rows][:: own.pool.width]), rows))
            first = rows.stop
        prompts = [memories for own in pool_rows for memories in own.prompts]
        depth = max(map(len, prompts), default=0)
        # The n-th memory of each row's prompt; a level is a prefix, or what follows it.
        self._levels = [
            shared([memories[level] if level < len(memories) else None for memories in prompts])
            for level in range(depth)
        ]
        self._shifts = [] if alibi_slopes is None else [self._shift(level, position_N) for level in self._levels]

    def attend(self, layer: int, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        """Write the new keys and values, and return self-attention: [N, H, K]."""
        q_NHK = _scaled(q_NHK)
        if self._crosses or not self._levels:
            return _joined([step.attend(layer, q_NHK[rows], k_NHK[rows], v_NHK[rows]) for step, rows in self._steps])
        own = [step.attend_in_part(layer, q_NHK[rows], k_NHK[rows], v_NHK[rows]) for step, rows in self._steps]
        attended_NHK, log_sum_NH = (_joined(list(both)) for both in zip(*own, strict=True))
        q_HNK = q_NHK.transpose(0, 1)
        for level, memories in enumerate(self._levels):
            other_NHK, other_sum_NH = self._attend_prompts(layer, q_HNK, memories)
            if self._shifts:
                other_sum_NH = other_sum_NH + self._shifts[level]
            weight_NH1 = (other_sum_NH - log_sum_NH).sigmoid()[:, :, None].to(attended_NHK.dtype)
            attended_NHK = attended_NHK + weight_NH1 * (other_NHK - attended_NHK)
            log_sum_NH = torch.logaddexp(log_sum_NH, other_sum_NH)
        return attended_NHK

    def cross_attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        """Return attention over each row's encoder output: [N, H, K]."""
        q_HNK = _scaled(q_NHK).transpose(0, 1)
        attended = [memory.attend(layer, q_HNK[:, rows]) for memory, rows in self._levels[0] if memory is not None]
        return torch.cat(attended, dim=1).transpose(0, 1)

    def _attend_prompts(
        self, layer: int, q_HNK: Tensor, level: Sequence[tuple[PromptMemory | None, slice]]
    ) -> tuple[Tensor, Tensor]:
        """Return partial attention over one level of memories [N, H, K], and its log-sum-exp [N, H]."""
        attended, log_sums = [], []
        for memory, rows in level:
            q_HnK = q_HNK[:, rows]
            if memory is None:
                attended.append(torch.zeros_like(q_HnK))
                log_sums.append(q_HnK.new_full(q_HnK.shape[:2], -torch.inf, dtype=torch.float32))
            else:
                one, log_sum = memory.attend_in_part(layer, q_HnK)
                attended.append(one)
                log_sums.append(log_sum)
        return torch.cat(attended, dim=1).transpose(0, 1), torch.cat(log_sums, dim=1).transpose(0, 1)

    def _shift(self, level: Sequence[tuple[PromptMemory | None, slice]], position_N: Tensor) -> Tensor:
        """Return the ALiBi bias from a memory's end to each query, [N, H]; the memory adds the rest."""
        assert self._alibi_slopes is not None
        ends = [memory.end if memory else 0 for memory, rows in level for _ in range(rows.stop - rows.start)]
        distance_N = torch.tensor(ends, device=position_N.device) - position_N
        return distance_N[:, None].float() * self._alibi_slopes


def shared(memories: Sequence[PromptMemory | None]) -> list[tuple[PromptMemory | None, slice]]:
    """Group adjacent rows that read one memory: a request's beams or samples, or requests with one prefix."""
    groups: list[tuple[PromptMemory | None, slice]] = []
    for row, memory in enumerate(memories):
        if groups and groups[-1][0] is memory:
            groups[-1] = (memory, slice(groups[-1][1].start, row + 1))
        else:
            groups.append((memory, slice(row, row + 1)))
    return groups


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _scaled(q_NHK: Tensor) -> Tensor:
    return q_NHK * q_NHK.shape[-1] ** -0.5
