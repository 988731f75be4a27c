"""Greedy search and sampling for all rows of a cohort at once, row by row independent. It knows no model, no cache."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from batchloom.models.generation.params import GenerationParams
from batchloom.models.generation.requests import NoAnswer, Request, SequenceOutput
from batchloom.models.generation.search.cohort import Cohort, Done, Step, StopText
from batchloom.models.generation.search.randomness import sample_key
from batchloom.models.generation.search.vocabulary import Vocabulary
from batchloom.models.generation.search.warpers import warp
from batchloom.models.transfers import to_device, true_indexes


class SamplingCohort(Cohort):
    """One row for each sample of each request; one a request in greedy search. A row leaves when its sequence ends."""

    def __init__(
        self, params: GenerationParams, device: torch.device, stop_text: StopText | None, vocabulary: Vocabulary
    ) -> None:
        super().__init__(params, device, stop_text, vocabulary)
        self._samples: list[int] = []  # of each row: the number of its request's sample
        self._answers: dict[Request, dict[int, SequenceOutput]] = {}
        self._key_R = torch.zeros(0, dtype=torch.long, device=device)

    def extend(self, requests: Sequence[Request]) -> None:
        """Add requests that start with the next step."""
        super().extend(requests)
        self._answers |= {request: {} for request in requests}
        self._samples += [sample for request in requests for sample in range(request.num_sequences)]
        keys = [sample_key(request.seed, sample) for request in requests for sample in range(request.num_sequences)]
        self._key_R = torch.cat((self._key_R, to_device(keys, self._key_R.device)))

    def step(self, logits_RV: Tensor) -> Step:
        """Choose every row's next token; return the requests that are done, and which rows stay."""
        for process in self.processors:
            process(logits_RV, self.history, None)
        token_R, log_prob_R = self._choose(logits_RV)
        self.history.append(token_R, log_prob_R)
        # NaN where a logit is NaN or +infinity. It is fetched with the tokens of the rows that are done.
        is_done_R = (self.history.length_R >= self.history.max_length_R) | log_prob_R.isnan()
        for end in self.params.eos_token_ids:
            is_done_R = is_done_R | (token_R == end)
        done = set(true_indexes(is_done_R))
        if self.params.stop_strings:
            done |= {row for row, tokens in enumerate(self.history.new_tokens()) if self.stops(tokens)}
        return self._leave(done, logits_RV)

    def _choose(self, logits_RV: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row's next token, and its log-probability in the distribution that it was chosen from."""
        if not self.params.do_sample:
            best_R, token_R, normalizer_R = self.vocabulary.best_and_normalizer(logits_RV)
            # Where every token is banned, the first one has probability 0; -inf minus -inf would be NaN.
            return token_R, (best_R.float() - normalizer_R).masked_fill_(best_R == -torch.inf, -torch.inf)
        step_R = self.history.length_R - self.history.start_length_R
        return warp(logits_RV, self.params, self.vocabulary).draw(self._key_R, step_R)

    def _leave(self, done: set[int], logits_RV: Tensor) -> Step:
        """Remove the rows that are done; a request is done with its last row, or its first that is not finite."""
        if not done:
            return Step([])
        history = self.history
        leaving = sorted(done)
        failed: dict[Request, NoAnswer] = {}
        for row, (tokens, log_probs) in zip(leaving, history.answers(leaving), strict=True):
            request = history.requests[row]
            if math.isnan(log_probs[-1]):
                failed[request] = self._failure(len(tokens), logits_RV[row : row + 1])
            else:
                self._answers[request][self._samples[row]] = self.answer(tokens, log_probs)
        kept = [row for row in range(history.num_rows) if row not in done and history.requests[row] not in failed]
        staying = {history.requests[row] for row in kept}
        finished = []
        for request in self.requests:
            if request not in staying:
                outputs = [output for _, output in sorted(self._answers.pop(request).items())]
                error = failed.get(request)
                finished.append(Done(request, [] if error else outputs, error))
        self._samples = [self._samples[row] for row in kept]
        self._key_R = self._key_R[to_device(kept, self._key_R.device)]
        self.keep([index for index, request in enumerate(self.requests) if request in staying], kept)
        return Step(finished, kept=kept)

    def _failure(self, num_new_tokens: int, logits_1V: Tensor) -> NoAnswer:
        """Return why a row's log-probability is NaN: its logits, or options that ban all tokens that could be drawn."""
        if float(self.vocabulary.best(logits_1V, 1)[0]) == -math.inf:
            banned = f"Options ban every token at new token {num_new_tokens}, so none can be drawn. Ban fewer tokens."
            return NoAnswer("not_finite", banned)
        return self.no_answer(num_new_tokens, logits_1V.dtype)
