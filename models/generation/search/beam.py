"""Beam search for all requests of a cohort at once. It knows logits and scores, no model and no cache.

Equal to transformers' beam search of one request at a time (5.23, GenerationMixin._beam_search), whose rules these are:
each step takes the best candidates over all beams, as many as leave num_beams open ones even if end tokens win;
candidates that end, and are among the best num_beams, compete for a place among the finished; the rest grow on.
Sampling inside the search draws these candidates in place of taking the best, and changes nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchloom.models.generation.crossings import fetch, places_of, to_device
from batchloom.models.generation.params import GenerationParams
from batchloom.models.generation.requests import Request, SequenceOutput
from batchloom.models.generation.search.cohort import Cohort, Done, Step, StopText
from batchloom.models.generation.search.randomness import gumbels, sample_key
from batchloom.models.generation.search.vocabulary import Vocabulary
from batchloom.models.generation.search.warpers import warp

# transformers' stand-in for minus infinity. Sums with it decide what the search does when nothing good is left.
WORST = -1.0e9
MORE_THAN_TOKENS = 1 << 32  # of any vocabulary: a continuation's number is its beam's times this, and the token


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
        no_scores_GB = torch.zeros(0, self.num_beams, device=device)
        self.score_GB = no_scores_GB  # of the growing sequences: sums of log-probabilities
        self.finished_score_GB = no_scores_GB  # divided by length, best first
        self.is_finished_GB = no_scores_GB.bool()
        self.finished_length_GB = no_scores_GB.long()
        self.finished_tokens_GBT = torch.zeros(0, self.num_beams, 0, dtype=torch.long, device=device)
        self.finished_log_prob_GBT = torch.zeros(0, self.num_beams, 0, device=device)
        self.can_improve_G = torch.zeros(0, dtype=torch.bool, device=device)
        self.key_G = torch.zeros(0, dtype=torch.long, device=device)  # of the random numbers

    def extend(self, requests: Sequence[Request]) -> None:
        super().extend(requests)
        num_new, num_beams, width = len(requests), self.num_beams, self.history.tokens_RT.shape[1]
        score_GB = self.score_GB.new_full((num_new, num_beams), WORST)
        self.finished_score_GB = torch.cat((self.finished_score_GB, score_GB))
        self.score_GB = torch.cat((self.score_GB, score_GB))
        self.score_GB[-num_new:, 0] = 0.0  # the other beams would only be the first once more
        self.is_finished_GB = torch.cat((self.is_finished_GB, score_GB.new_zeros(score_GB.shape, dtype=torch.bool)))
        self.finished_length_GB = torch.cat((self.finished_length_GB, score_GB.new_zeros(score_GB.shape).long()))
        self.can_improve_G = torch.cat((self.can_improve_G, self.can_improve_G.new_ones(num_new)))
        keys = [sample_key(request.seed, 0) for request in requests]
        self.key_G = torch.cat((self.key_G, to_device(keys, self.key_G.device)))
        self.finished_tokens_GBT = _enlarged(self.finished_tokens_GBT, num_new, width)
        self.finished_log_prob_GBT = _enlarged(self.finished_log_prob_GBT, num_new, width)

    def step(self, logits_RV: Tensor) -> Step:
        candidates = self._candidates(logits_RV)
        length_G = self._of_request(self.history.length_R) + 1  # with the token that is being chosen
        is_end_GC = self._is_end(candidates, length_G)
        self._finish(candidates, is_end_GC, length_G)
        parent_GB = self._grow(candidates, is_end_GC)
        self.can_improve_G &= self._could_improve(length_G)
        is_done_G = ~self.can_improve_G | is_end_GC.all(1)
        if self.params.early_stopping is True:
            is_done_G |= self.is_finished_GB.all(1)
        done = places_of(is_done_G)
        if not done:
            return Step([], parent_GB)
        finished = [Done(self.requests[index], own) for index, own in zip(done, self._outputs(done), strict=True)]
        kept = sorted(set(range(len(self.requests))) - set(done))
        self._close_ranks(kept)
        return Step(finished, parent_GB, kept)

    @property
    def width(self) -> int:
        return self.num_beams

    def _candidates(self, logits_RV: Tensor) -> "Candidates":
        """The best continuations over all beams of each request, best first."""
        normalizer_R = self.vocabulary.log_normalizer(logits_RV)
        for process in self.processors:
            process(logits_RV, self.history, normalizer_R)
        if self.params.do_sample:
            return self._drawn(logits_RV, normalizer_R)
        if self.params.renormalize_logits:
            normalizer_R = self.vocabulary.log_normalizer(logits_RV)
        value_RC, token_RC = self.vocabulary.best(logits_RV, self.num_candidates)
        return self._chosen(value_RC.float() - normalizer_R[:, None], token_RC)

    def _drawn(self, logits_RV: Tensor, normalizer_R: Tensor) -> "Candidates":
        """Continuations drawn without replacement, the first drawn first; by the same score they go on to compete."""
        assert self.params.temperature is not None
        # One more than there are end tokens, so that a sequence can always go on.
        pool = warp(logits_RV, self.params, self.vocabulary, num_kept=1 + len(self.params.eos_token_ids))
        log_prob_RC = pool.log_prob_RC
        if not self.params.renormalize_logits:  # scores add up the model's own probabilities, of the tokens left
            value_RC = self.vocabulary.find(logits_RV, pool.token_RC).float()
            own_RC = (value_RC - normalizer_R[:, None]) / self.params.temperature
            log_prob_RC = torch.where(log_prob_RC == -torch.inf, log_prob_RC, own_RC)
        key_R = self.key_G.repeat_interleave(self.num_beams)
        beam_R1 = torch.arange(len(key_R), device=key_R.device)[:, None] % self.num_beams
        step_R = self.history.length_R - self.history.start_length_R
        noise_RC = gumbels(key_R, step_R, pool.token_RC + beam_R1 * MORE_THAN_TOKENS)
        return self._chosen(log_prob_RC, pool.token_RC, noise_RC)

    def _chosen(self, log_prob_RC: Tensor, token_RC: Tensor, noise_RC: Tensor | None = None) -> "Candidates":
        """The best of each request's continuations; `noise_RC` decides with the scores, but is not part of them."""
        num_requests, width = len(self.requests), log_prob_RC.shape[1]
        score_GC = (log_prob_RC + self.score_GB.view(-1, 1)).view(num_requests, -1)
        order_GC = score_GC if noise_RC is None else score_GC + noise_RC.view(num_requests, -1)
        index_GC = order_GC.topk(self.num_candidates).indices
        return Candidates(
            score_GC=score_GC.gather(1, index_GC),
            parent_GC=index_GC // width,
            token_GC=token_RC.reshape(num_requests, -1).gather(1, index_GC),  # of a whole vocabulary all rows are one
            log_prob_GC=log_prob_RC.view(num_requests, -1).gather(1, index_GC),
        )

    def _is_end(self, candidates: "Candidates", length_G: Tensor) -> Tensor:
        """Which candidates end their sequence: [G, C]."""
        is_end_GC = (length_G >= self._of_request(self.history.max_length_R))[:, None].expand_as(candidates.token_GC)
        for end in self.params.eos_token_ids:
            is_end_GC = is_end_GC | (candidates.token_GC == end)
        if self.params.stops:
            is_end_GC = is_end_GC | self._completes_stop(candidates)
        return is_end_GC

    def _completes_stop(self, candidates: "Candidates") -> Tensor:
        said = self.history.new_tokens()
        stops = [
            [self.stops([*said[index * self.num_beams + parent], token]) for parent, token in zip(*both, strict=True)]
            for index, both in enumerate(zip(candidates.parent_GC.tolist(), candidates.token_GC.tolist(), strict=True))
        ]
        return to_device(stops, candidates.token_GC.device, torch.bool)

    def _finish(self, candidates: "Candidates", is_end_GC: Tensor, length_G: Tensor) -> None:
        """Lets candidates that end compete with the finished; only the best num_beams candidates may."""
        is_entrant_GC = is_end_GC.clone()
        is_entrant_GC[:, self.num_beams :] = False
        score_GC = candidates.score_GC / self._length_divisor(length_G)
        if self.params.early_stopping is True:
            score_GC = score_GC + self.is_finished_GB.all(1, keepdim=True) * WORST
        score_GC = score_GC + ~self.can_improve_G[:, None] * WORST + ~is_entrant_GC * WORST
        self.finished_score_GB, choice_GB = torch.cat((self.finished_score_GB, score_GC), dim=1).topk(self.num_beams)
        is_new_GB = choice_GB >= self.num_beams
        old_GB, new_GB = choice_GB.clamp(max=self.num_beams - 1), (choice_GB - self.num_beams).clamp(min=0)
        self.is_finished_GB = torch.where(
            is_new_GB, is_entrant_GC.gather(1, new_GB), self.is_finished_GB.gather(1, old_GB)
        )
        self.finished_length_GB = torch.where(is_new_GB, length_G[:, None], self.finished_length_GB.gather(1, old_GB))
        end = self.history.longest + 1
        last_GB1 = (length_G - 1)[:, None, None].expand(-1, self.num_beams, 1)
        for finished_GBT, running_RT, chosen_GC in (
            (self.finished_tokens_GBT, self.history.tokens_RT, candidates.token_GC),
            (self.finished_log_prob_GBT, self.history.log_prob_RT, candidates.log_prob_GC),
        ):
            running_GBT = running_RT.view(len(self.requests), self.num_beams, -1)[:, :, :end]
            new_GBT = _gather(running_GBT, candidates.parent_GC.gather(1, new_GB))
            new_GBT.scatter_(2, last_GB1, chosen_GC.gather(1, new_GB)[:, :, None])
            old_GBT = _gather(finished_GBT[:, :, :end], old_GB)
            finished_GBT[:, :, :end] = torch.where(is_new_GB[:, :, None], new_GBT, old_GBT)

    def _grow(self, candidates: "Candidates", is_end_GC: Tensor) -> Tensor:
        """The best open candidates become the beams; returns where each comes from, [G, B]."""
        self.score_GB, choice_GB = (candidates.score_GC + is_end_GC * WORST).topk(self.num_beams)
        parent_GB = candidates.parent_GC.gather(1, choice_GB)
        first_row_G1 = torch.arange(len(self.requests), device=parent_GB.device)[:, None] * self.num_beams
        self.history.reorder((parent_GB + first_row_G1).flatten())
        self.history.append(
            candidates.token_GC.gather(1, choice_GB).flatten(), candidates.log_prob_GC.gather(1, choice_GB).flatten()
        )
        return parent_GB

    def _could_improve(self, length_G: Tensor) -> Tensor:
        """Whether the best growing beam could still beat the worst finished one, by transformers' heuristics."""
        if self.params.early_stopping == "never" and self.length_penalty > 0.0:
            length_G = self._of_request(self.history.max_length_R)
        best_G1 = self.score_GB[:, :1] / self._length_divisor(length_G)
        worst_G1 = self.finished_score_GB.amin(1, keepdim=True)
        worst_GB = worst_G1.expand_as(self.is_finished_GB).masked_fill(~self.is_finished_GB, WORST)
        return (best_G1 > worst_GB).any(1)

    def _length_divisor(self, length_G: Tensor) -> Tensor:
        """New tokens ** length_penalty, [G, 1]; in float64 before it is rounded once, as Python's power is."""
        num_new_G = length_G - self._of_request(self.history.start_length_R)
        return (num_new_G.double() ** self.length_penalty).float()[:, None]

    def _of_request(self, value_R: Tensor) -> Tensor:
        """What is equal in all beams of a request, once a request: [G]."""
        return value_R[:: self.num_beams]

    def _close_ranks(self, kept: list[int]) -> None:
        """Forgets all requests but these."""
        self.keep(kept, [index * self.num_beams + beam for index in kept for beam in range(self.num_beams)])
        index_M = to_device(kept, self.score_GB.device)
        for name in ("score_GB", "finished_score_GB", "is_finished_GB", "finished_length_GB", "can_improve_G", "key_G"):
            setattr(self, name, getattr(self, name)[index_M])
        width = self.history.tokens_RT.shape[1]
        self.finished_tokens_GBT = self.finished_tokens_GBT[index_M, :, :width]
        self.finished_log_prob_GBT = self.finished_log_prob_GBT[index_M, :, :width]

    def _outputs(self, indexes: Sequence[int]) -> list[list[SequenceOutput]]:
        """The best sequences of some requests."""
        index_M = to_device(indexes, self.score_GB.device)
        num = self.params.num_return_sequences or 1
        numbers = (self.finished_length_GB, self.finished_score_GB)
        texts = (self.finished_tokens_GBT, self.finished_log_prob_GBT)
        columns_MX = [number_GB[index_M, :num, None].flatten(0, 1) for number_GB in numbers]
        columns_MX += [text_GBT[index_M, :num, : self.history.longest].flatten(0, 1) for text_GBT in texts]
        starts = [self.requests[index].num_start_tokens for index in indexes for _ in range(num)]
        outputs = []
        for start, (length,), (score,), tokens, log_probs in zip(starts, *fetch(*columns_MX), strict=True):
            new = slice(start, int(length))
            outputs.append(self.answer([int(token) for token in tokens[new]], log_probs[new], score))
        return [outputs[first : first + num] for first in range(0, len(outputs), num)]


@dataclass(frozen=True)
class Candidates:
    """C continuations of each request, best first: [G, C] each."""

    score_GC: Tensor  # sums of log-probabilities, not yet divided by length
    parent_GC: Tensor  # the beam that each continues
    token_GC: Tensor
    log_prob_GC: Tensor  # of the token alone


def _enlarged(matrix_GBT: Tensor, num_new: int, width: int) -> Tensor:
    """The same values in a larger array of zeros."""
    num_old, num_beams, old_width = matrix_GBT.shape
    larger_GBT = matrix_GBT.new_zeros(num_old + num_new, num_beams, width)
    larger_GBT[:num_old, :, :old_width] = matrix_GBT
    return larger_GBT


def _gather(tokens_GBT: Tensor, index_GB: Tensor) -> Tensor:
    """Whole token rows by beam."""
    return tokens_GBT.gather(1, index_GB[:, :, None].expand(-1, -1, tokens_GBT.shape[2]))
