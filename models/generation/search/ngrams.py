"""Bans of tokens that would complete an n-gram a second time, in plain torch. It knows no history."""

from dataclasses import dataclass

import torch
from torch import Tensor

from batchloom.models.generation.search.vocabulary import Vocabulary


@dataclass(frozen=True)
class Texts:
    """A text for each row: tokens [R, T], undefined beyond the row's length [R]."""

    tokens_RT: Tensor
    length_R: Tensor


def plain_ban_completions(logits_RV: Tensor, own: Texts, text: Texts, size: int, vocabulary: Vocabulary) -> None:
    """Ban the tokens that follow the last size - 1 tokens of `own` in `text`: they would complete an n-gram of it.

    All windows are compared at once: 128 rows of 64 tokens are 8,000 comparisons, cheaper than a lookup for each row.
    """
    num_windows = text.tokens_RT.shape[1] - size + 1
    if num_windows <= 0:
        return
    ends_T = torch.arange(size, size + num_windows, device=logits_RV.device)
    matches_RT = ends_T <= text.length_R[:, None]
    suffix_start_R = own.length_R - (size - 1)
    matches_RT &= (suffix_start_R >= 0)[:, None]
    for offset in range(size - 1):
        wanted_R1 = own.tokens_RT.gather(1, (suffix_start_R + offset).clamp(min=0)[:, None])
        matches_RT &= text.tokens_RT[:, offset : offset + num_windows] == wanted_R1
    vocabulary.ban(logits_RV, text.tokens_RT[:, size - 1 : size - 1 + num_windows], matches_RT)
