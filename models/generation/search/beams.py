"""The beams of beam search as records: growing sequences, finished ones, and candidates. They know no model, no cache.

Names: G requests, B beams, C candidates, T tokens. Records are replaced as a whole; only token rows are written in
place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchloom.models.generation.enlarging import enlarged
from batchloom.models.transfers import to_device

# transformers' stand-in for minus infinity. Sums with it decide what the search does when no good candidate is left.
WORST = -1.0e9


@dataclass(frozen=True)
class Candidates:
    """C continuations of each request, best first: [G, C] each."""

    score_GC: Tensor  # sums of log-probabilities, not yet divided by length
    parent_GC: Tensor  # the beam that each continues
    token_GC: Tensor
    log_prob_GC: Tensor  # of the token alone


@dataclass(frozen=True)
class GrowingBeams:
    """What the search knows of each request's growing sequences, apart from their tokens."""

    score_GB: Tensor  # sums of log-probabilities
    can_improve_G: Tensor  # whether a growing sequence may still beat a finished one
    key_G: Tensor  # of the random numbers

    @classmethod
    def empty(cls, num_beams: int, device: torch.device) -> "GrowingBeams":
        """Return the record of no requests."""
        return cls(
            score_GB=torch.zeros(0, num_beams, device=device),
            can_improve_G=torch.zeros(0, dtype=torch.bool, device=device),
            key_G=torch.zeros(0, dtype=torch.long, device=device),
        )

    def extend(self, keys: Sequence[int]) -> "GrowingBeams":
        """Append requests with these random keys."""
        num_new = len(keys)
        score_GB = self.score_GB.new_full((num_new, self.score_GB.shape[1]), WORST)
        score_GB[:, 0] = 0.0  # all beams start equal, so only the first may continue in the first step
        return GrowingBeams(
            torch.cat((self.score_GB, score_GB)),
            torch.cat((self.can_improve_G, self.can_improve_G.new_ones(num_new))),
            torch.cat((self.key_G, to_device(keys, self.key_G.device))),
        )

    def keep(self, index_M: Tensor) -> "GrowingBeams":
        """Drop all requests but these."""
        return GrowingBeams(self.score_GB[index_M], self.can_improve_G[index_M], self.key_G[index_M])


@dataclass(frozen=True)
class FinishedBeams:
    """The best finished sequences of each request so far, best first, with start tokens."""

    score_GB: Tensor  # divided by length
    is_finished_GB: Tensor  # False where a request has fewer
    length_GB: Tensor
    tokens_GBT: Tensor
    log_prob_GBT: Tensor

    @classmethod
    def empty(cls, num_beams: int, device: torch.device) -> "FinishedBeams":
        """Return the record of no requests."""
        score_GB = torch.zeros(0, num_beams, device=device)
        tokens_GBT = torch.zeros(0, num_beams, 0, dtype=torch.long, device=device)
        return cls(score_GB, score_GB.bool(), score_GB.long(), tokens_GBT, torch.zeros(0, num_beams, 0, device=device))

    def extend(self, num_new: int, width: int) -> "FinishedBeams":
        """Append requests without finished sequences, and make room for sequences of `width` tokens."""
        num, num_beams = len(self.score_GB) + num_new, self.score_GB.shape[1]
        return FinishedBeams(
            enlarged(self.score_GB, (num, num_beams), fill=WORST),
            enlarged(self.is_finished_GB, (num, num_beams)),
            enlarged(self.length_GB, (num, num_beams)),
            enlarged(self.tokens_GBT, (num, num_beams, width)),
            enlarged(self.log_prob_GBT, (num, num_beams, width)),
        )

    def keep(self, index_M: Tensor, width: int) -> "FinishedBeams":
        """Drop all requests but these, and the room beyond `width` tokens."""
        return FinishedBeams(
            self.score_GB[index_M],
            self.is_finished_GB[index_M],
            self.length_GB[index_M],
            self.tokens_GBT[index_M, :, :width],
            self.log_prob_GBT[index_M, :, :width],
        )

    def select(
        self, score_GC: Tensor, is_entrant_GC: Tensor, length_G: Tensor, running: Sequence[Tensor], new: Candidates
    ) -> "FinishedBeams":
        """Return the best of the finished sequences and of candidates.

        `score_GC`: the candidates' scores divided by length, WORST where one may not enter. `length_G`: their length.
        `running`: tokens and log-probabilities [G, B, T] of the growing sequences that they continue, which have a
        column for the new token.
        """
        num_beams = self.score_GB.shape[1]
        score_GB, choice_GB = torch.cat((self.score_GB, score_GC), dim=1).topk(num_beams)
        is_new_GB = choice_GB >= num_beams
        old_GB, new_GB = choice_GB.clamp(max=num_beams - 1), (choice_GB - num_beams).clamp(min=0)
        is_finished_GB = torch.where(is_new_GB, is_entrant_GC.gather(1, new_GB), self.is_finished_GB.gather(1, old_GB))
        length_GB = torch.where(is_new_GB, length_G[:, None], self.length_GB.gather(1, old_GB))
        parent_GB = new.parent_GC.gather(1, new_GB)
        last_GB1 = (length_G - 1)[:, None, None].expand(-1, num_beams, 1)
        for finished_GBT, running_GBT, chosen_GC in zip(
            (self.tokens_GBT, self.log_prob_GBT), running, (new.token_GC, new.log_prob_GC), strict=True
        ):
            end = running_GBT.shape[2]
            new_GBT = _of_beams(running_GBT, parent_GB)
            new_GBT.scatter_(2, last_GB1, chosen_GC.gather(1, new_GB)[:, :, None])
            old_GBT = _of_beams(finished_GBT[:, :, :end], old_GB)
            finished_GBT[:, :, :end] = torch.where(is_new_GB[:, :, None], new_GBT, old_GBT)
        return FinishedBeams(score_GB, is_finished_GB, length_GB, self.tokens_GBT, self.log_prob_GBT)

    def worst_GB(self) -> Tensor:
        """Return the score that a new sequence has to beat, WORST where there are too few finished ones."""
        worst_G1 = self.score_GB.amin(1, keepdim=True)
        return worst_G1.expand_as(self.is_finished_GB).masked_fill(~self.is_finished_GB, WORST)


def _of_beams(tokens_GBT: Tensor, index_GB: Tensor) -> Tensor:
    """Gather whole token rows by beam."""
    return tokens_GBT.gather(1, index_GB[:, :, None].expand(-1, -1, tokens_GBT.shape[2]))
