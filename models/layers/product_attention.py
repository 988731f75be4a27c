"""Attention by products, sequence by sequence: faster than torch's kernel in bfloat16 on a CPU. It knows no weights.

Where there is a compiled kernel (models/layers/native), that computes them, with scores in float32. What follows is of
the way without it.

A product rounds scores to bfloat16's eight bits, which is too coarse where scores are large. So scores are computed
twice: first to find each query's maximum; then with a value a little below that maximum subtracted inside the product,
from its float32 sums, before it rounds. The rounding error of a score is then proportional to its distance from that
value, so the scores with the largest softmax weights have the smallest errors.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from batchloom.models.layers.native.library import dense_kernels
from batchloom.models.layers.native.packed_attention import attend_packed
from batchloom.models.threads import side_by_side

# Scores held at once, 4.5 MB with their float32 copy: fewer make the calls too small, more do not fit a core's cache.
MOST_SCORES = 3 << 18


class ProductAttention:
    """Softmax attention of B sequences without padding; consecutive sequences of equal lengths share one call."""

    def __init__(self, query_lengths: Sequence[int], key_lengths: Sequence[int], causal: bool) -> None:
        self.query_lengths, self.key_lengths, self.causal = list(query_lengths), list(key_lengths), causal
        self._free_buffers: list[_Buffers] = []

    @property
    def num_positions(self) -> int:
        """Key positions that are computed: there is no padding."""
        return sum(self.key_lengths)

    def __call__(self, q_NHK: Tensor, k_SHK: Tensor, v_SHK: Tensor, scale: float) -> Tensor:
        library = dense_kernels(torch.bfloat16) if q_NHK.dtype == torch.bfloat16 else None
        if library is not None:
            lengths = list(zip(self.query_lengths, self.key_lengths, strict=True))
            return attend_packed(library, q_NHK, k_SHK, v_SHK, lengths, self.causal, scale)
        attended_NHK = torch.empty_like(q_NHK, memory_format=torch.contiguous_format)
        runs = _runs(zip(self.query_lengths, self.key_lengths, strict=True), MOST_SCORES // q_NHK.shape[1])
        queries, keys = [size * length for size, length, _ in runs], [size * length for size, _, length in runs]
        parts = attended_NHK.split(queries), q_NHK.split(queries), k_SHK.split(keys), v_SHK.split(keys)
        work = iter(list(zip([size for size, *_ in runs], *parts, strict=True)))
        num_threads = torch.get_num_threads()
        # Each thread takes one run after another. If torch split each small call over its threads, they would
        # synchronize ten times a run: up to ten times as slow while another process uses one of the cores.
        side_by_side(lambda: self._attend_runs(work, scale), min(num_threads, len(runs)), num_threads)
        return attended_NHK

    @torch.inference_mode()
    def _attend_runs(self, work: Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor]], scale: float) -> None:
        """Take runs of (size, attended, q, k, v) until none is left, and write each result to `attended`."""
        buffers = self._free_buffers.pop() if self._free_buffers else _Buffers()
        for size, *of_run in work:
            attended_GHTK, *inputs = (x.unflatten(0, (size, -1)).transpose(1, 2) for x in of_run)
            q_BTK, k_BSK, v_BSK = (x_GHTK.flatten(0, 1).contiguous() for x_GHTK in inputs)
            num_queries, num_keys = q_BTK.shape[1], k_BSK.shape[1]
            for first, last in _blocks(num_queries, len(q_BTK) * num_keys):
                num_seen = num_keys - (num_queries - last if self.causal else 0)
                seen = q_BTK[:, first:last], k_BSK[:, :num_seen], v_BSK[:, :num_seen]
                attended_GHTK[:, :, first:last] = self._attend(buffers, *seen, scale).unflatten(0, (size, -1))
        self._free_buffers.append(buffers)

    def _attend(self, buffers: "_Buffers", q_BTK: Tensor, k_BSK: Tensor, v_BSK: Tensor, scale: float) -> Tensor:
        """Attend; where attention is causal, the T queries are the last of the S tokens."""
        k_BKS, scale_of_2 = k_BSK.transpose(1, 2), scale * math.log2(math.e)  # exp2 is faster than exp
        scores_BTS, wide_BTS = buffers.of((*q_BTK.shape[:2], k_BSK.shape[1]), q_BTK)
        num_before = k_BSK.shape[1] - q_BTK.shape[1]
        if self.causal:
            unseen_TS = q_BTK.new_full(scores_BTS.shape[1:], -torch.inf).triu_(num_before + 1)
            torch.baddbmm(unseen_TS, q_BTK, k_BKS, out=scores_BTS)
        else:
            torch.bmm(q_BTK, k_BKS, out=scores_BTS)
        # torch finds a row's maximum faster in float32, the copy included. Most of the softmax weight is a little below
        # it: with an offset of 2 (in log2), errors were smallest in a trained model (docs/log.md).
        shift_BT1 = wide_BTS.copy_(scores_BTS).amax(-1, keepdim=True).sub_(2 / scale_of_2).to(q_BTK.dtype)
        torch.baddbmm(shift_BT1, q_BTK, k_BKS, beta=-scale_of_2, alpha=scale_of_2, out=scores_BTS)
        weights_BTS = scores_BTS.exp2_()
        if self.causal:
            weights_BTS.tril_(num_before)
        return torch.bmm(weights_BTS, v_BSK).div_(weights_BTS.sum(-1, keepdim=True, dtype=torch.float32))


class _Buffers:
    """A thread's buffers for scores, reused: page faults of fresh memory take longer than the products."""

    def __init__(self) -> None:
        self._scores, self._wide = torch.empty(0), torch.empty(0)

    def of(self, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
        """Return two uninitialized tensors of a shape, one like `like`, one float32; they overwrite earlier ones."""
        size = math.prod(shape)
        if self._scores.numel() < size:
            self._scores, self._wide = like.new_empty(size), like.new_empty(size, dtype=torch.float32)
        return self._scores[:size].view(shape), self._wide[:size].view(shape)


def _runs(lengths: Iterable[tuple[int, int]], most_scores: int) -> list[tuple[int, int, int]]:
    """Group consecutive sequences of equal lengths, with at most `most_scores` scores, as (size, queries, keys):

    lengths 5, 5, 3 -> (2, 5, 5), (1, 3, 3)
    """
    runs: list[tuple[int, int, int]] = []
    for num_queries, num_keys in lengths:
        size = runs[-1][0] + 1 if runs and runs[-1][1:] == (num_queries, num_keys) else 1
        if size > 1 and size * num_queries * num_keys <= most_scores:
            runs[-1] = (size, num_queries, num_keys)
        else:
            runs.append((1, num_queries, num_keys))
    return runs


def _blocks(num_queries: int, num_scores: int) -> list[tuple[int, int]]:
    """Split queries with `num_scores` scores each into nearly equal ranges whose scores fit MOST_SCORES.

    5 queries, of which 2 fit -> (0, 2), (2, 4), (4, 5)
    """
    num_blocks = -(-num_queries * num_scores // MOST_SCORES)
    size = -(-num_queries // num_blocks)
    return [(first, min(first + size, num_queries)) for first in range(0, num_queries, size)]
