"""Beam search for all requests of a cohort at once. It knows logits and scores, no model and no cache.

Equal to transformers' beam search of one request at a time (5.23, GenerationMixin._beam_search), whose rules these are:
each step takes the best candidates over all beams, as many as leave num_beams open ones even if end tokens win;
candidates that end, and are among the best num_beams, compete for a place among the finished; the rest grow on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.generation.candidates import log_normalizer, top_candidates
from models.generation.cohort import Cohort, Done, Step
from models.generation.params import GenerationParams
from models.generation.sequence import Request, SequenceOutput

# transformers' stand-in for minus infinity. Sums with it decide what the search does when nothing good is left.
WORST = -1.0e9


class BeamCohort(Cohort):
    """G requests of `num_beams` rows each. Names: G requests, B beams, C candidates, T tokens."""

    def __init__(self, params: GenerationParams, device: torch.device) -> None:
        super().__init__(params, device)
        assert params.num_beams is not None
        assert params.length_penalty is not None
        self.num_beams = params.num_beams
        self.num_candidates = max(2, 1 + len(params.eos_token_ids)) * params.num_beams
        self.length_penalty = params.length_penalty
        no_scores_GB = torch.zeros(0, self.num_beams, device=device)
        self.score_GB = no_scores_GB  # of the growing sequences: sums of log-probabilities
        self.finished_score_GB = no_scores_GB  # divided by length, best first
        self.is_finished_GB = no_scores_GB.bool()
        self.finished_length_GB = no_scores_GB.long()
        self.finished_tokens_GBT = torch.zeros(0, self.num_beams, 0, dtype=torch.long, device=device)
        self.can_improve_G = torch.zeros(0, dtype=torch.bool, device=device)

    def extend(self, requests: Sequence[Request]) -> None:
        super().extend(requests)
        num_new, device = len(requests), self.score_GB.device
        score_GB = torch.full((num_new, self.num_beams), WORST, device=device)
        self.finished_score_GB = torch.cat((self.finished_score_GB, score_GB))
        score_GB = score_GB.clone()
        score_GB[:, 0] = 0.0  # the others would be the first once more
        self.score_GB = torch.cat((self.score_GB, score_GB))
        self.is_finished_GB = torch.cat((self.is_finished_GB, score_GB.new_zeros(score_GB.shape, dtype=torch.bool)))
        self.finished_length_GB = torch.cat(
            (self.finished_length_GB, score_GB.new_zeros(score_GB.shape, dtype=torch.long))
        )
        self.can_improve_G = torch.cat((self.can_improve_G, torch.ones(num_new, dtype=torch.bool, device=device)))
        width = self.history.tokens_RT.shape[1]
        finished = self.finished_tokens_GBT.new_zeros(len(self.requests), self.num_beams, width)
        num_old, _, old_width = self.finished_tokens_GBT.shape
        finished[:num_old, :, :old_width] = self.finished_tokens_GBT
        self.finished_tokens_GBT = finished

    def step(self, logits_RV: Tensor) -> Step:
        candidate_GC, parent_GC, token_GC = self._candidates(logits_RV)
        length_G = self.history.length_R[:: self.num_beams] + 1  # with the token that is being chosen
        is_end_GC = self._is_end(token_GC, length_G)
        self._finish(candidate_GC, parent_GC, token_GC, is_end_GC, length_G)
        parent_GB = self._grow(candidate_GC, parent_GC, token_GC, is_end_GC)
        self.can_improve_G &= self._could_improve(length_G)
        is_done_G = ~self.can_improve_G | is_end_GC.all(1)
        if self.params.early_stopping is True:
            is_done_G |= self.is_finished_GB.all(1)
        return Step(parents=list(parent_GB), done=self._take(is_done_G.nonzero()[:, 0].tolist()))

    def _candidates(self, logits_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations over all beams of each request: scores, beams and tokens, [G, C], best first."""
        normalizer_R = log_normalizer(logits_RV)
        for process in self.processors:
            process(logits_RV, self.history, normalizer_R)
        value_RC, token_RC = top_candidates(logits_RV, self.num_candidates)
        score_RC = value_RC.float() - normalizer_R[:, None] + self.score_GB.view(-1, 1)
        num_requests, width = len(self.requests), score_RC.shape[1]
        candidate_GC, index_GC = score_RC.view(num_requests, -1).topk(self.num_candidates)
        return candidate_GC, index_GC // width, token_RC.view(num_requests, -1).gather(1, index_GC)

    def _is_end(self, token_GC: Tensor, length_G: Tensor) -> Tensor:
        is_end_GC = (length_G >= self.max_length_G)[:, None].expand_as(token_GC)
        for end in self.params.eos_token_ids:
            is_end_GC = is_end_GC | (token_GC == end)
        return is_end_GC

    def _finish(
        self, candidate_GC: Tensor, parent_GC: Tensor, token_GC: Tensor, is_end_GC: Tensor, length_G: Tensor
    ) -> None:
        """Lets candidates that end compete with the finished; only the best num_beams candidates may."""
        is_entrant_GC = is_end_GC.clone()
        is_entrant_GC[:, self.num_beams :] = False
        score_GC = candidate_GC / self._length_divisor(length_G)
        if self.params.early_stopping is True:
            score_GC = score_GC + self.is_finished_GB.all(1, keepdim=True) * WORST
        score_GC = score_GC + ~self.can_improve_G[:, None] * WORST + ~is_entrant_GC * WORST
        merged = torch.cat((self.finished_score_GB, score_GC), dim=1)
        self.finished_score_GB, choice_GB = merged.topk(self.num_beams)
        is_new_GB = choice_GB >= self.num_beams
        old_GB, new_GB = choice_GB.clamp(max=self.num_beams - 1), (choice_GB - self.num_beams).clamp(min=0)
        self.is_finished_GB = torch.where(
            is_new_GB, is_entrant_GC.gather(1, new_GB), self.is_finished_GB.gather(1, old_GB)
        )
        self.finished_length_GB = torch.where(is_new_GB, length_G[:, None], self.finished_length_GB.gather(1, old_GB))
        longest = max(self.history.lengths)
        beams_GBT = self.history.tokens_RT.view(len(self.requests), self.num_beams, -1)[:, :, : longest + 1]
        old_GBT = _gather(self.finished_tokens_GBT[:, :, : longest + 1], old_GB)
        new_GBT = _gather(beams_GBT, parent_GC.gather(1, new_GB))
        last_GB1 = (length_G - 1)[:, None, None].expand(-1, self.num_beams, 1)
        new_GBT.scatter_(2, last_GB1, token_GC.gather(1, new_GB)[:, :, None])
        self.finished_tokens_GBT[:, :, : longest + 1] = torch.where(is_new_GB[:, :, None], new_GBT, old_GBT)

    def _grow(self, candidate_GC: Tensor, parent_GC: Tensor, token_GC: Tensor, is_end_GC: Tensor) -> Tensor:
        """The best open candidates become the beams; returns where each comes from, [G, B]."""
        self.score_GB, choice_GB = (candidate_GC + is_end_GC * WORST).topk(self.num_beams)
        parent_GB = parent_GC.gather(1, choice_GB)
        first_row_G1 = torch.arange(len(self.requests), device=parent_GB.device)[:, None] * self.num_beams
        self.history.reorder((parent_GB + first_row_G1).flatten())
        self.history.append(token_GC.gather(1, choice_GB).flatten())
        return parent_GB

    def _could_improve(self, length_G: Tensor) -> Tensor:
        """Whether the best growing beam could still beat the worst finished one, by transformers' heuristics."""
        if self.params.early_stopping == "never" and self.length_penalty > 0.0:
            length_G = self.max_length_G
        best_G1 = self.score_GB[:, :1] / self._length_divisor(length_G)
        worst_GB = torch.where(self.is_finished_GB, self.finished_score_GB.amin(1, keepdim=True), WORST)
        return (best_G1 > worst_GB).any(1)

    def _length_divisor(self, length_G: Tensor) -> Tensor:
        """New tokens ** length_penalty, [G, 1]; in float64 before it is rounded once, as Python's power is."""
        return ((length_G - self.num_start_tokens_G).double() ** self.length_penalty).float()[:, None]

    def _take(self, done: list[int]) -> list[Done]:
        """The answers of requests that are done; the others close ranks."""
        if not done:
            return []
        finished = [Done(self.requests[index], index, self._outputs(index)) for index in done]
        gone = set(done)
        kept = [index for index in range(len(self.requests)) if index not in gone]
        rows = [index * self.num_beams + beam for index in kept for beam in range(self.num_beams)]
        self.keep(kept, rows)
        index_M = torch.tensor(kept, dtype=torch.long, device=self.score_GB.device)
        for name in ("score_GB", "finished_score_GB", "is_finished_GB", "finished_length_GB", "can_improve_G"):
            setattr(self, name, getattr(self, name)[index_M])
        self.finished_tokens_GBT = self.finished_tokens_GBT[index_M, :, : self.history.tokens_RT.shape[1]]
        return finished

    def _outputs(self, index: int) -> list[SequenceOutput]:
        assert self.params.num_return_sequences is not None
        request = self.requests[index]
        scores = self.finished_score_GB[index].tolist()
        lengths = self.finished_length_GB[index].tolist()
        outputs = []
        for beam in range(self.params.num_return_sequences):
            tokens = self.finished_tokens_GBT[index, beam, request.num_start_tokens : lengths[beam]].tolist()
            outputs.append(SequenceOutput(tokens, scores[beam], self.reason(tokens)))
        return outputs


def _gather(tokens_GBT: Tensor, index_GB: Tensor) -> Tensor:
    """Whole token rows by beam."""
    return tokens_GBT.gather(1, index_GB[:, :, None].expand(-1, -1, tokens_GBT.shape[2]))
