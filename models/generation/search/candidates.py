"""Passes over the vocabulary: the normalizer of a softmax, and a row's largest logits. They know no search.

[rows, vocabulary] is the largest tensor of a step, so each pass over it is written once, here, and counted.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from batchloom.models.kernels import kernel_or
from batchloom.models.layers.native.library import bfloat16_kernels
from batchloom.models.layers.native.vocabulary import log_normalizers

TILE = 128  # tokens: one streaming pass gives the maximum of each tile, and the largest of 400 maxima cost nothing

# Float32 copies of this many logits stay in a CPU core's cache, so few rows are taken at a time: 128 rows of 50,000
# would go to memory and back, 29 ms against 5, measured on one core. A GPU wants few calls: 256 MB of float32 each.
LOGITS_AT_ONCE = {False: 200_000, True: 64_000_000}


Reduction = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def log_normalizer(logits_RV: Tensor) -> Tensor:
    """Return the log-sum-exp of each row, float32 [R]: a logit minus this is a log-probability."""
    if logits_RV.device.type == "cpu":
        is_bfloat16 = logits_RV.dtype == torch.bfloat16 and logits_RV.stride(1) == 1
        library = bfloat16_kernels() if is_bfloat16 else None
        return plain_log_normalizer(logits_RV) if library is None else log_normalizers(library, logits_RV)
    return best_and_normalizer(logits_RV)[2]


def best_and_normalizer(logits_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's largest logit and its token, the first of equals, and its log-sum-exp, float32: all [R]."""
    return _reduction_on(logits_RV.device)(logits_RV)


def plain_best_and_normalizer(logits_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value_R, token_R = logits_RV.max(dim=-1)
    return value_R, token_R, plain_log_normalizer(logits_RV)


@cache
def _reduction_on(device: torch.device) -> Reduction:
    """Return the kernel where Triton works, and plain torch elsewhere."""

    def load() -> Reduction:
        from batchloom.models.generation.search.kernels.vocabulary import best_and_normalizer

        best_and_normalizer(torch.zeros(1, 16, device=device))
        return best_and_normalizer

    plain: Reduction = plain_best_and_normalizer
    return kernel_or(plain, device, load, without="tokens are chosen by plain torch")


def plain_log_normalizer(logits_RV: Tensor) -> Tensor:
    num_rows, vocab_size = logits_RV.shape
    rows_at_once = max(1, LOGITS_AT_ONCE[logits_RV.device.type == "cuda"] // vocab_size)
    normalizer_R = logits_RV.new_empty(num_rows, dtype=torch.float32)
    for first in range(0, num_rows, rows_at_once):
        some_MV = logits_RV[first : first + rows_at_once]
        # The fused kernel reads and writes once; the largest logit minus its log-probability is the normalizer.
        log_prob_M = some_MV.log_softmax(-1, dtype=torch.float32).amax(-1)
        best_M = some_MV.amax(-1).float()
        # A rank's columns of a row can all be -inf.
        normalizer_R[first : first + rows_at_once] = torch.where(best_M == -torch.inf, best_M, best_M - log_prob_M)
    return normalizer_R


def top_candidates(logits_RV: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return the `num` largest of each row, best first: values [R, C] and tokens [R, C].

    Exact in two levels: the best `num` tokens are in the `num` tiles with the largest maxima.
    """
    vocab_size = logits_RV.shape[1]
    num = min(num, vocab_size)
    if num == 1:
        value_R1, token_R1 = logits_RV.max(dim=-1, keepdim=True)  # the first of equals, which topk does not promise
        return value_R1, token_R1
    num_tiles = vocab_size // TILE
    if num_tiles < 2 * num:
        return logits_RV.topk(num)
    body_RNK = logits_RV[:, : num_tiles * TILE].unflatten(1, (num_tiles, TILE))
    tile_RC = body_RNK.amax(2).topk(num).indices
    value_RCK = body_RNK.gather(1, tile_RC[:, :, None].expand(-1, -1, TILE))
    tail_RK = logits_RV[:, num_tiles * TILE :]
    value_RC, place_RC = torch.cat((value_RCK.flatten(1), tail_RK), dim=1).topk(num)
    in_tile_RC = tile_RC.gather(1, (place_RC // TILE).clamp(max=num - 1)) * TILE + place_RC % TILE
    in_tail_RC = place_RC - num * TILE + num_tiles * TILE
    return value_RC, torch.where(place_RC < num * TILE, in_tile_RC, in_tail_RC)
