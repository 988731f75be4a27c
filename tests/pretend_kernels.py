"""Triton's kernels on the pretend GPU: each is one operation there, as it is one launch on a GPU.

Plain torch computes them from the CPU's numbers, or Triton's interpreter runs the kernels themselves, which takes
seconds a step.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from batchloom.models.generation.memory.gpu import backend
from batchloom.models.generation.memory.gpu.attention import BlockReader, BlockReads, BlockWrites
from batchloom.models.generation.memory.gpu.blocks import BlockStore
from batchloom.models.generation.memory.gpu.fused import FusedReader
from batchloom.models.generation.search import candidates, ngrams, processors, randomness
from batchloom.models.generation.search.kernels import gumbels as gumbel_kernel
from batchloom.models.generation.search.kernels import ngrams as ngram_kernel
from batchloom.models.generation.search.kernels import vocabulary as vocabulary_kernel
from batchloom.models.generation.search.ngrams import Texts
from batchloom.models.generation.search.vocabulary import WHOLE, Vocabulary
from batchloom.models.layers import norm, norm_kernel

INTERPRETS = False
READ = "layer, Tensor[] store, Tensor[] reads, Tensor position, Tensor? slopes, Tensor q"
KERNELS = torch.library.Library("kernels", "DEF")
KERNELS.define(f"attend(Tensor {READ}) -> Tensor")
KERNELS.define(f"append(Tensor(a!) {READ}, Tensor[] new) -> Tensor")
KERNELS.define("norm_of_sum(Tensor residual, Tensor update, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)")
KERNELS.define("best_and_normalizer(Tensor logits) -> (Tensor, Tensor, Tensor)")
KERNELS.define("gumbels(Tensor key, Tensor step, Tensor choice) -> Tensor")
KERNELS.define("ban_completions(Tensor(a!) logits, Tensor[] own, Tensor[] text, int size) -> ()")


class _Store(BlockStore):
    """One layer of a store, on the CPU."""

    def __init__(self, layer: Tensor, descent_BRS: Tensor, position_BS: Tensor) -> None:
        self.layers, self.descent_BRS, self.position_BS = [layer], descent_BRS, position_BS
        self.num_readers = descent_BRS.shape[1]


def _reader(layer: Tensor, store: list[Tensor], reads: list[Tensor], *rest: Any) -> BlockReader:
    reader = FusedReader if INTERPRETS else BlockReader
    return reader(_Store(layer, *store), BlockReads(*reads), *rest)


def _attend(*args: Any) -> Tensor:
    *read, q_NHK = args
    return _reader(*read).attend(0, q_NHK)


def _append(*args: Any) -> Tensor:
    *read, q_NHK, (k_NHK, v_NHK, block_N, offset_N) = args
    return _reader(*read).append(0, BlockWrites(block_N, offset_N, offset_N), q_NHK, k_NHK, v_NHK)


def _norm_of_sum(residual: Tensor, update: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    like = torch.nn.LayerNorm(len(weight), eps)
    like.weight, like.bias = (torch.nn.Parameter(values, requires_grad=False) for values in (weight, bias))
    return (norm_kernel.norm_of_sum if INTERPRETS else norm.plain_norm_of_sum)(residual, update, like)


def _best_and_normalizer(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    best = vocabulary_kernel.best_and_normalizer if INTERPRETS else candidates.plain_best_and_normalizer
    return best(logits)


def _gumbels(key: Tensor, step: Tensor, choice: Tensor) -> Tensor:
    return (gumbel_kernel.gumbels if INTERPRETS else randomness.plain_gumbels)(key, step, choice)


def _ban_completions(logits: Tensor, own: list[Tensor], text: list[Tensor], size: int) -> None:
    ban = ngram_kernel.ban_completions if INTERPRETS else ngrams.plain_ban_completions
    ban(logits, Texts(*own), Texts(*text), size, WHOLE)


KERNELS.impl("attend", _attend, "CPU")
KERNELS.impl("append", _append, "CPU")
KERNELS.impl("norm_of_sum", _norm_of_sum, "CPU")
KERNELS.impl("best_and_normalizer", _best_and_normalizer, "CPU")
KERNELS.impl("gumbels", _gumbels, "CPU")
KERNELS.impl("ban_completions", _ban_completions, "CPU")


class PretendReader(BlockReader):
    """`FusedReader`, of which each call is one operation."""

    def __init__(self, store: Any, reads: BlockReads, position_N: Tensor, alibi_slopes: Tensor | None) -> None:
        arrays = [reads.reader_BR, reads.count_B, reads.table_NM, reads.place_NM, reads.length_N]
        self._layers = store.layers
        self._read = ([store.descent_BRS, store.position_BS], arrays, position_N, alibi_slopes)

    def append(self, layer: int, writes: BlockWrites, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
        new = [k_NHK, v_NHK, writes.block_N, writes.offset_N]
        result_NHK: Tensor = torch.ops.kernels.append(self._layers[layer], *self._read, q_NHK, new)
        return result_NHK

    def attend(self, layer: int, q_NHK: Tensor) -> Tensor:
        result_NHK: Tensor = torch.ops.kernels.attend(self._layers[layer], *self._read, q_NHK)
        return result_NHK


def pretend_norm_of_sum(residual_ND: Tensor, update_ND: Tensor, like: torch.nn.LayerNorm) -> tuple[Tensor, Tensor]:
    sum_ND, normed_ND = torch.ops.kernels.norm_of_sum(residual_ND, update_ND, like.weight, like.bias, like.eps)
    return sum_ND, normed_ND


def pretend_ban_completions(logits_RV: Tensor, own: Texts, text: Texts, size: int, vocabulary: Vocabulary) -> None:
    assert vocabulary is WHOLE
    both = [[one.tokens_RT, one.length_R] for one in (own, text)]
    torch.ops.kernels.ban_completions(logits_RV, *both, size)


def use_kernels(patch: pytest.MonkeyPatch, interprets: bool = False) -> None:
    """Let what is computed on the pretend GPU from now on use the kernels; `interprets`: Triton's interpreter does."""
    patch.setattr("tests.pretend_kernels.INTERPRETS", interprets)

    def on_gpu(kernel: Any, plain: Any) -> Any:
        return lambda device: kernel if device.type == "cuda" else plain

    patch.setattr(backend, "reader_on", on_gpu(PretendReader, BlockReader))
    patch.setattr(norm, "_norm_of_sum_on", on_gpu(pretend_norm_of_sum, norm.plain_norm_of_sum))
    best = on_gpu(torch.ops.kernels.best_and_normalizer, candidates.plain_best_and_normalizer)
    patch.setattr(candidates, "_reduction_on", best)
    patch.setattr(randomness, "_gumbels_on", on_gpu(torch.ops.kernels.gumbels, randomness.plain_gumbels))
    patch.setattr(processors, "_bans_on", on_gpu(pretend_ban_completions, ngrams.plain_ban_completions))
