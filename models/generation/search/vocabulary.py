"""The vocabulary as a rank sees it: which columns of the logits it has, and reductions over all ranks' columns.

A rank computes the logits of its own tokens, and processors change them there. A search needs a normalizer and the
largest few logits: each rank computes those of its columns, and from a few gathered numbers a row all ranks choose the
same tokens. Whole rows are gathered only for options that look at every token.

    5 tokens, 2 ranks      rank 0: tokens 0 1 2      rank 1: tokens 3 4, and a column that no token can win
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchloom.models.generation.model import Model
from batchloom.models.generation.search.candidates import best_and_normalizer, log_normalizer, top_candidates
from batchloom.models.ranks.division import rank_slice
from batchloom.models.ranks.group import TensorParallel


class Vocabulary:
    """The whole vocabulary on one rank: a token is a column."""

    @property
    def first(self) -> int:
        """The token of this rank's first column."""
        return 0

    def log_normalizer(self, logits_RV: Tensor) -> Tensor:
        """Return the log-sum-exp of each row over all ranks, float32 [R]."""
        return log_normalizer(logits_RV)

    def best(self, logits_RV: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """Return the `num` largest logits of each row, best first: values [R, C] and tokens [R, C]."""
        return top_candidates(logits_RV, num)

    def best_and_normalizer(self, logits_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return each row's largest logit and its token, the first of equals, and `log_normalizer`: all [R]."""
        return best_and_normalizer(logits_RV)

    def whole(self, logits_RV: Tensor) -> Tensor:
        """Return the logits of all tokens, gathered from all ranks."""
        return logits_RV

    def find(self, logits_RV: Tensor, token_RC: Tensor) -> Tensor:
        """Return the logits of some tokens of each row, whichever rank has them: [R, C]."""
        return logits_RV.gather(1, token_RC)

    def columns(self, token_ids: Sequence[int]) -> list[int]:
        """Return the columns of those tokens that this rank has."""
        return list(token_ids)

    def read(self, logits_RV: Tensor, token_RT: Tensor) -> Tensor:
        """Return the logits of some tokens of each row: [R, T]; undefined for tokens that another rank has."""
        return logits_RV.gather(1, token_RT)

    def write(self, logits_RV: Tensor, token_RT: Tensor, value_RT: Tensor) -> None:
        """Set the logits of those tokens that this rank has; a token that occurs twice in a row must have one value."""
        logits_RV.scatter_(1, token_RT, value_RT)

    def ban(self, logits_RV: Tensor, token_RT: Tensor, is_banned_RT: Tensor) -> None:
        """Ban some of these tokens of each row."""
        row_R1 = torch.arange(len(logits_RV), device=logits_RV.device)[:, None]
        # By a sum, since a token may occur twice in a row, banned and not; a list of places would synchronize.
        penalty_RT = logits_RV.new_zeros(token_RT.shape).masked_fill_(is_banned_RT, -torch.inf)
        logits_RV.index_put_((row_R1, token_RT), penalty_RT, accumulate=True)


WHOLE = Vocabulary()


@dataclass(frozen=True)
class DividedVocabulary(Vocabulary):
    """A contiguous range of the vocabulary on each rank, all with as many columns; padding columns hold -inf."""

    size: int
    group: TensorParallel

    @property
    def own(self) -> slice:
        """The tokens of this rank."""
        return rank_slice(self.size, self.group.size, self.group.rank)

    @property
    def first(self) -> int:
        return self.own.start

    def log_normalizer(self, logits_RV: Tensor) -> Tensor:
        return self.group.all_gather(log_normalizer(logits_RV)[:, None]).logsumexp(-1)

    def best(self, logits_RV: Tensor, num: int) -> tuple[Tensor, Tensor]:
        value_RC, column_RC = top_candidates(logits_RV, num)
        token_RC = (column_RC + self.own.start).clamp(max=self.size - 1)
        # One all-gather for both: float64 represents logits of any dtype and token ids exactly.
        all_R2C = self.group.all_gather(torch.stack((value_RC.double(), token_RC.double()), dim=1))
        # Stable: among equals the lowest rank comes first, which has the lowest tokens.
        value_RC, order_RC = all_R2C[:, 0].sort(dim=-1, descending=True, stable=True)
        token_RC = all_R2C[:, 1].gather(1, order_RC)
        num = min(num, self.size)
        return value_RC[:, :num].to(logits_RV.dtype), token_RC[:, :num].long()

    def best_and_normalizer(self, logits_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value_R, column_R, normalizer_R = best_and_normalizer(logits_RV)
        token_R = (column_R + self.own.start).clamp(max=self.size - 1)
        own_R3 = torch.stack((value_R.double(), token_R.double(), normalizer_R.double()), dim=1)
        all_R3C = self.group.all_gather(own_R3[:, :, None])
        best_R1 = all_R3C[:, 0].argmax(
            -1, keepdim=True
        )  # the first of equals: the lowest rank, which has the lowest tokens
        value_R, token_R = (all_R3C[:, place].gather(1, best_R1)[:, 0] for place in (0, 1))
        return value_R.to(logits_RV.dtype), token_R.long(), all_R3C[:, 2].float().logsumexp(-1)

    def whole(self, logits_RV: Tensor) -> Tensor:
        return self.group.all_gather(logits_RV)[:, : self.size]

    def find(self, logits_RV: Tensor, token_RC: Tensor) -> Tensor:
        value_RC = self.read(logits_RV, token_RC).masked_fill(~self._is_own(token_RC), 0.0)
        return self.group.all_reduce(value_RC)  # the other ranks add zeros

    def columns(self, token_ids: Sequence[int]) -> list[int]:
        own = self.own
        return [token - own.start for token in token_ids if own.start <= token < own.stop]

    def read(self, logits_RV: Tensor, token_RT: Tensor) -> Tensor:
        return logits_RV.gather(1, (token_RT - self.own.start).clamp(0, logits_RV.shape[1] - 1))

    def write(self, logits_RV: Tensor, token_RT: Tensor, value_RT: Tensor) -> None:
        row_M, place_M = self._is_own(token_RT).nonzero(as_tuple=True)
        logits_RV[row_M, token_RT[row_M, place_M] - self.own.start] = value_RT[row_M, place_M]

    def ban(self, logits_RV: Tensor, token_RT: Tensor, is_banned_RT: Tensor) -> None:
        column_RT = (token_RT - self.own.start).clamp(0, logits_RV.shape[1] - 1)
        super().ban(logits_RV, column_RT, is_banned_RT & self._is_own(token_RT))

    def _is_own(self, token: Tensor) -> Tensor:
        return (token >= self.own.start) & (token < self.own.stop)


def vocabulary_of(model: Model) -> Vocabulary:
    """Return the vocabulary that a model's logits on this rank cover."""
    return WHOLE if model.group.size == 1 else DividedVocabulary(model.config.vocab_size, model.group)
