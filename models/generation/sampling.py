"""Greedy search and sampling for all rows of a cohort at once. It knows logits, no model and no cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.generation.candidates import log_normalizer
from models.generation.cohort import Cohort, Done, Step
from models.generation.params import GenerationParams
from models.generation.sequence import Request, SequenceOutput


class GreedyCohort(Cohort):
    """One row a request; each takes its likeliest token."""

    def __init__(self, params: GenerationParams, device: torch.device) -> None:
        super().__init__(params, device)
        self.score_R = torch.zeros(0, device=device)

    def extend(self, requests: Sequence[Request]) -> None:
        super().extend(requests)
        self.score_R = torch.cat((self.score_R, self.score_R.new_zeros(len(requests))))

    def step(self, logits_RV: Tensor) -> Step:
        for process in self.processors:
            process(logits_RV, self.history, None)
        best_R, token_R = logits_RV.max(dim=-1)
        self.score_R += best_R.float() - log_normalizer(logits_RV)
        self.history.append(token_R)
        is_done_R = self.history.length_R >= self.max_length_G
        for end in self.params.eos_token_ids:
            is_done_R |= token_R == end
        num_requests = len(self.requests)
        return Step(parents=[None] * num_requests, done=self._take(is_done_R.nonzero()[:, 0].tolist()))

    def _take(self, done: list[int]) -> list[Done]:
        if not done:
            return []
        finished = []
        for row in done:
            tokens = self.history.new_tokens(row)
            output = SequenceOutput(tokens, float(self.score_R[row]), self.reason(tokens))
            finished.append(Done(self.requests[row], row, [output]))
        gone = set(done)
        kept = [row for row in range(len(self.requests)) if row not in gone]
        self.keep(kept, kept)
        self.score_R = self.score_R[torch.tensor(kept, dtype=torch.long, device=self.score_R.device)]
        return finished
