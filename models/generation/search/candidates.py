"""Passes over the vocabulary: the normalizer of a softmax, and the best few of many. They know no search.

[rows, vocabulary] is the largest thing that a step makes, so each pass over it is written once, here, and counted.
"""

import torch
from torch import Tensor

BLOCK = 128  # tokens a block: a maximum a block costs one streaming pass, and the best few of 400 maxima cost nothing

# Float32 copies of so many logits stay in a core's cache. Rows are taken by the handful, or 128 rows of 50 000 would be
# copied to memory and back: 29 ms against 5, measured on one core.
# A GPU wants few calls: 256 MB of float32 a call.
LOGITS_AT_ONCE = {False: 200_000, True: 64_000_000}


def log_normalizer(logits_RV: Tensor) -> Tensor:
    """The logarithm of each row's sum of exponentials, float32 [R]: logit minus this is a log-probability."""
    num_rows, vocab_size = logits_RV.shape
    rows_at_once = max(1, LOGITS_AT_ONCE[logits_RV.device.type == "cuda"] // vocab_size)
    normalizer_R = logits_RV.new_empty(num_rows, dtype=torch.float32)
    for first in range(0, num_rows, rows_at_once):
        part_MV = logits_RV[first : first + rows_at_once]
        # The fused kernel reads and writes once; the best token's logit less its log-probability is the normalizer.
        log_prob_M = part_MV.log_softmax(-1, dtype=torch.float32).amax(-1)
        best_M = part_MV.amax(-1).float()
        # A rank's part of a row can be all -inf.
        normalizer_R[first : first + rows_at_once] = torch.where(best_M == -torch.inf, best_M, best_M - log_prob_M)
    return normalizer_R


def top_candidates(logits_RV: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` largest of each row, best first: values [R, C] and tokens [R, C].

    Exact in two levels: the best `num` tokens lie in the `num` blocks with the largest maxima.
    """
    vocab_size = logits_RV.shape[1]
    num = min(num, vocab_size)
    if num == 1:
        value_R1, token_R1 = logits_RV.max(dim=-1, keepdim=True)  # of equals the first, which topk does not promise
        return value_R1, token_R1
    num_blocks = vocab_size // BLOCK
    if num_blocks < 2 * num:
        return logits_RV.topk(num)
    body_RNK = logits_RV[:, : num_blocks * BLOCK].unflatten(1, (num_blocks, BLOCK))
    block_RC = body_RNK.amax(2).topk(num).indices
    value_RCK = body_RNK.gather(1, block_RC[:, :, None].expand(-1, -1, BLOCK))
    tail_RK = logits_RV[:, num_blocks * BLOCK :]
    pool_RP = torch.cat((value_RCK.flatten(1), tail_RK), dim=1)
    value_RC, place_RC = pool_RP.topk(num)
    in_block_RC = block_RC.gather(1, (place_RC // BLOCK).clamp(max=num - 1)) * BLOCK + place_RC % BLOCK
    in_tail_RC = place_RC - num * BLOCK + num_blocks * BLOCK
    return value_RC, torch.where(place_RC < num * BLOCK, in_block_RC, in_tail_RC)
