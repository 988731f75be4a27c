"""Beam search for all requests of a cohort at once. It knows logits and scores, no model and no cache.

Equal to transformers' beam search of one request at a time (5.23, GenerationMixin._beam_search), whose rules these are:
each step takes the best candidates over all beams, as many as leave num_beams open ones even if end tokens win;
candidates that end, and are among the best num_beams, compete for a place among the finished; the rest grow on.
Sampling inside the search draws these candidates instead of taking the best, and changes nothing else.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from batchloom.models.generation.params import GenerationParams
from batchloom.models.generation.requests import Request, SequenceOutput
from batchloom.models.generation.search.beams import WORST, Candidates, FinishedBeams, GrowingBeams
from batchloom.models.generation.search.cohort import Cohort, Done, Step, StopText
from batchloom.models.generation.search.randomness import gumbels, sample_key
from batchloom.models.generation.search.vocabulary import Vocabulary
from batchloom.models.generation.search.warpers import warp
from batchloom.models.transfers import fetch, to_device, true_indexes

# Above the tokens of any vocabulary: a continuation's number is its beam times this, plus its token.
BEAM_STRIDE = 1 << 32


class BeamCohort(Cohort):
    """G requests of `num_beams` rows each. Names: G requests, B beams, C candidates, T tokens."""

    def __init__(
        self, params: GenerationParams, device: torch.device, stop_text: StopText | None, vocabulary: Vocabulary
    ) -> None:
        super().__init__(params, device, stop_text, vocabulary)
        assert params.num_beams is not None
        assert params.length_penalty is not None
        self.num_beams = params.num_beams
        self.num_candidates = max(2, 1 + len(params.eos_token_ids)) * params.num_beams
        self.length_penalty = params.length_penalty
        self.growing = GrowingBeams.empty(params.num_beams, device)
        self.finished = FinishedBeams.empty(params.num_beams, device)

    @property
    def width(self) -> int:
        """Sequences in a unit."""
        return self.num_beams

    def extend(self, requests: Sequence[Request]) -> None:
        """Add requests that start with the next step."""
        super().extend(requests)
        self.growing = self.growing.extend([sample_key(request.seed, 0) for request in requests])
        self.finished = self.finished.extend(len(requests), self.history.tokens_RT.shape[1])

    def step(self, logits_RV: Tensor) -> Step:
        """Choose every row's next token; return the requests that are done, and how the rows moved."""
        candidates = self._candidates(logits_RV)
        length_G = self._of_request(self.history.length_R) + 1  # with the token that is being chosen
        is_end_GC = self._is_end(candidates, length_G)
        # NaN sorts before all numbers, so a request with a logit that is NaN or +infinity has such candidates.
        is_nan_G = candidates.score_GC.isnan().any(1)
        divisor_G1 = self._length_divisor(length_G)
        self._finish(candidates, is_end_GC, length_G, divisor_G1)
        parent_GB = self._grow(candidates, is_end_GC)
        can_improve_G = self.growing.can_improve_G & self._could_improve(divisor_G1)
        self.growing = replace(self.growing, can_improve_G=can_improve_G)
        is_done_G = ~can_improve_G | is_end_GC.all(1) | is_nan_G
        if self.params.early_stopping is True:
            is_done_G |= self.finished.is_finished_GB.all(1)
        done = true_indexes(is_done_G)
        if not done:
            return Step([], parent_GB)
        finished = self._done(done, is_nan_G, logits_RV.dtype)
        kept = sorted(set(range(len(self.requests))) - set(done))
        self._keep_requests(kept)
        return Step(finished, parent_GB, kept)

    def _candidates(self, logits_RV: Tensor) -> Candidates:
        """Return the best continuations over all beams of each request, best first."""
        normalizer_R = self.vocabulary.log_normalizer(logits_RV)
        for process in self.processors:
            process(logits_RV, self.history, normalizer_R)
        if self.params.do_sample:
            return self._drawn(logits_RV, normalizer_R)
        if self.params.renormalize_logits:
            normalizer_R = self.vocabulary.log_normalizer(logits_RV)
        value_RC, token_RC = self.vocabulary.best(logits_RV, self.num_candidates)
        return self._chosen(value_RC.float() - normalizer_R[:, None], token_RC)

    def _drawn(self, logits_RV: Tensor, normalizer_R: Tensor) -> Candidates:
        """Draw continuations without replacement; their scores are those of a search without sampling."""
        assert self.params.temperature is not None
        # One more than there are end tokens, so that a sequence can always go on.
        drawn_from = warp(logits_RV, self.params, self.vocabulary, num_kept=1 + len(self.params.eos_token_ids))
        log_prob_RC = drawn_from.log_prob_RC
        if not self.params.renormalize_logits:  # scores add up the model's own probabilities of the tokens left
            value_RC = self.vocabulary.find(logits_RV, drawn_from.token_RC).float()
            own_RC = (value_RC - normalizer_R[:, None]) / self.params.temperature
            log_prob_RC = torch.where(log_prob_RC == -torch.inf, log_prob_RC, own_RC)
        key_R = self.growing.key_G.repeat_interleave(self.num_beams)
        beam_R1 = torch.arange(len(key_R), device=key_R.device)[:, None] % self.num_beams
        step_R = self.history.length_R - self.history.start_length_R
        noise_RC = gumbels(key_R, step_R, drawn_from.token_RC + beam_R1 * BEAM_STRIDE)
        return self._chosen(log_prob_RC, drawn_from.token_RC, noise_RC)

    def _chosen(self, log_prob_RC: Tensor, token_RC: Tensor, noise_RC: Tensor | None = None) -> Candidates:
        """Return each request's best continuations; `noise_RC` is added for the choice, but not to the scores."""
        num_requests, width = len(self.requests), log_prob_RC.shape[1]
        score_GC = (log_prob_RC + self.growing.score_GB.view(-1, 1)).view(num_requests, -1)
        order_GC = score_GC if noise_RC is None else score_GC + noise_RC.view(num_requests, -1)
        index_GC = order_GC.topk(self.num_candidates).indices
        return Candidates(
            score_GC=score_GC.gather(1, index_GC),
            parent_GC=index_GC // width,
            token_GC=token_RC.reshape(num_requests, -1).gather(
                1, index_GC
            ),  # not view: token_RC may be an expanded row
            log_prob_GC=log_prob_RC.view(num_requests, -1).gather(1, index_GC),
        )

    def _is_end(self, candidates: Candidates, length_G: Tensor) -> Tensor:
        """Return which candidates end their sequence: [G, C]."""
        is_end_GC = (length_G >= self._of_request(self.history.max_length_R))[:, None].expand_as(candidates.token_GC)
        for end in self.params.eos_token_ids:
            is_end_GC = is_end_GC | (candidates.token_GC == end)
        if self.params.stops:
            is_end_GC = is_end_GC | self._completes_stop(candidates)
        return is_end_GC

    def _completes_stop(self, candidates: Candidates) -> Tensor:
        """Return which candidates complete a stop string: [G, C]."""
        generated = self.history.new_tokens()
        stops = [
            [
                self.stops([*generated[index * self.num_beams + parent], token])
                for parent, token in zip(*both, strict=True)
            ]
            for index, both in enumerate(zip(candidates.parent_GC.tolist(), candidates.token_GC.tolist(), strict=True))
        ]
        return to_device(stops, candidates.token_GC.device, torch.bool)

    def _finish(self, candidates: Candidates, is_end_GC: Tensor, length_G: Tensor, divisor_G1: Tensor) -> None:
        """Let candidates that end compete with the finished sequences; only the best num_beams candidates may."""
        is_entrant_GC = is_end_GC.clone()
        is_entrant_GC[:, self.num_beams :] = False
        score_GC = candidates.score_GC / divisor_G1
        if self.params.early_stopping is True:
            score_GC = score_GC.add(self.finished.is_finished_GB.all(1, keepdim=True), alpha=WORST)
        score_GC = score_GC.add(~self.growing.can_improve_G[:, None], alpha=WORST).add(~is_entrant_GC, alpha=WORST)
        end = self.history.longest + 1
        running = [
            matrix_RT.view(len(self.requests), self.num_beams, -1)[:, :, :end]
            for matrix_RT in (self.history.tokens_RT, self.history.log_prob_RT)
        ]
        self.finished = self.finished.select(score_GC, is_entrant_GC, length_G, running, candidates)

    def _grow(self, candidates: Candidates, is_end_GC: Tensor) -> Tensor:
        """Let the best open candidates become the beams; return which beam each continues, [G, B]."""
        score_GB, choice_GB = candidates.score_GC.add(is_end_GC, alpha=WORST).topk(self.num_beams)
        self.growing = replace(self.growing, score_GB=score_GB)
        parent_GB = candidates.parent_GC.gather(1, choice_GB)
        first_row_G1 = torch.arange(0, self.history.num_rows, self.num_beams, device=parent_GB.device)[:, None]
        self.history.reorder((parent_GB + first_row_G1).flatten())
        self.history.append(
            candidates.token_GC.gather(1, choice_GB).flatten(), candidates.log_prob_GC.gather(1, choice_GB).flatten()
        )
        return parent_GB

    def _could_improve(self, divisor_G1: Tensor) -> Tensor:
        """Return whether the best growing beam could still beat the worst finished one, by transformers' heuristics."""
        if self.params.early_stopping == "never" and self.length_penalty > 0.0:
            # as the reference, which knows no positions
            divisor_G1 = self._length_divisor(self._of_request(self.history.asked_length_R))
        best_G1 = self.growing.score_GB[:, :1] / divisor_G1
        return (best_G1 > self.finished.worst_GB()).any(1)

    def _length_divisor(self, length_G: Tensor) -> Tensor:
        """Return new tokens ** length_penalty, [G, 1]; in float64 and rounded once, as Python's power is."""
        num_new_G = length_G - self._of_request(self.history.start_length_R)
        return (num_new_G.double() ** self.length_penalty).float()[:, None]

    def _of_request(self, value_R: Tensor) -> Tensor:
        """Return values that are equal in all beams of a request, once a request: [G]."""
        return value_R[:: self.num_beams]

    def _keep_requests(self, kept: list[int]) -> None:
        """Drop all requests but these."""
        self.keep(kept, [index * self.num_beams + beam for index in kept for beam in range(self.num_beams)])
        index_M = to_device(kept, self.growing.score_GB.device)
        self.growing = self.growing.keep(index_M)
        self.finished = self.finished.keep(index_M, self.history.tokens_RT.shape[1])

    def _done(self, indexes: Sequence[int], is_nan_G: Tensor, dtype: torch.dtype) -> list[Done]:
        """Return the best sequences of some requests, or why there are none."""
        finished = self.finished
        index_M = to_device(indexes, finished.score_GB.device)
        num = self.params.num_return_sequences or 1
        columns_MX = [
            number_GB[index_M, :num, None].flatten(0, 1)
            for number_GB in (finished.length_GB, finished.score_GB, is_nan_G[:, None].expand(-1, num))
        ]
        columns_MX += [
            row_GBT[index_M, :num, : self.history.longest].flatten(0, 1)
            for row_GBT in (finished.tokens_GBT, finished.log_prob_GBT)
        ]
        starts = [self.requests[index].num_start_tokens for index in indexes for _ in range(num)]
        rows = list(zip(starts, *fetch(*columns_MX), strict=True))
        done = []
        for place, index in enumerate(indexes):
            outputs, error = list[SequenceOutput](), None
            for start, (length,), (score,), (is_nan,), tokens, log_probs in rows[place * num : (place + 1) * num]:
                new = slice(start, int(length))
                if is_nan:
                    error = self.no_answer(self.history.lengths[index * self.num_beams] - start, dtype)
                else:
                    outputs.append(self.answer([int(token) for token in tokens[new]], log_probs[new], score))
            done.append(Done(self.requests[index], outputs, error))
        return done
