"""The runner computes what the scheduler decided: prefill, then one token a decode step. It knows no queue."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from batchloom.models.generation.memory.backend import CohortCache, HeldPrompt, backend_of
from batchloom.models.generation.memory.prefill import prefill
from batchloom.models.generation.memory.prefixes import Prefixes
from batchloom.models.generation.model import GenerativeModel
from batchloom.models.generation.params import GenerationParams
from batchloom.models.generation.requests import Request
from batchloom.models.generation.search.beam_search import BeamCohort
from batchloom.models.generation.search.cohort import Cohort, Done, StopText
from batchloom.models.generation.search.sampling import SamplingCohort
from batchloom.models.generation.search.vocabulary import vocabulary_of


@dataclass(frozen=True)
class Running:
    """A cohort, and the KV cache of its generated tokens; the cache's units are the cohort's, in its order."""

    cohort: Cohort
    cache: CohortCache


class Runner:
    """A model and its running requests, in cohorts of equal params except for lengths."""

    def __init__(
        self, model: GenerativeModel, stop_text: StopText | None = None, prefixes: Prefixes | None = None
    ) -> None:
        """`prefixes`: shared with other runners of the same model."""
        self.model = model
        self._stop_text = stop_text
        self._running: dict[GenerationParams, Running] = {}
        self._prompt_memories: dict[Request, HeldPrompt] = {}  # what the backend holds of each request's prompt
        self._prefixes = prefixes or Prefixes()
        self._backend = backend_of(model)

    @property
    def padding(self) -> float:
        """Bytes held for each byte of keys and values, at most."""
        return self._backend.padding

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks of the KV cache that are in use, and that are allocated."""
        return self._backend.blocks

    def prefill(self, requests: Sequence[Request]) -> int:
        """Compute the prompts of requests that start; return how many positions, padding included."""
        prefilled = prefill(self.model, requests, self._prefixes)
        self._prompt_memories |= self._backend.hold(prefilled)
        by_search: dict[GenerationParams, list[int]] = {}
        for number, request in enumerate(requests):
            by_search.setdefault(request.params.search, []).append(number)
        for params, members in by_search.items():
            if params not in self._running:
                self._running[params] = self._start(params)
            running = self._running[params]
            running.cohort.extend([requests[number] for number in members])
            width = running.cohort.width
            units = [number for number in members for _ in range(requests[number].num_sequences // width)]
            beginnings = None if prefilled.beginnings is None else prefilled.beginnings.of(units)
            running.cache.extend(len(units), beginnings)
        return prefilled.num_positions

    def decode(self) -> list[Done]:
        """Compute one token for every running sequence; return the requests that are done with it."""
        running = list(self._running.values())
        histories = [one.cohort.history for one in running]
        input_ids_N = torch.cat([history.last_tokens() for history in histories])
        position_N = torch.cat([history.length_R for history in histories]) - 1
        cohorts = [(one.cache, [self._prompt_memories[row] for row in one.cohort.history.requests]) for one in running]
        logits_NV = self._backend.logits(input_ids_N, position_N, cohorts)
        done: list[Done] = []
        for one, logits_RV in zip(running, logits_NV.split([history.num_rows for history in histories]), strict=True):
            step = one.cohort.step(logits_RV)
            if step.parents_GB is not None:
                one.cache.reorder(step.parents_GB)
            if step.kept is not None:
                one.cache.keep(step.kept, erases=any(finished.error for finished in step.done))
            done += step.done
        for finished in done:
            self._backend.release(self._prompt_memories.pop(finished.request), erases=finished.error is not None)
        self._running = {params: one for params, one in self._running.items() if one.cohort.requests}
        return done

    def clear(self) -> None:
        """Drop everything that runs."""
        self._running.clear()
        self._prompt_memories.clear()
        self._prefixes.clear()
        self._backend = backend_of(self.model)

    def _start(self, params: GenerationParams) -> Running:
        search = BeamCohort if (params.num_beams or 1) > 1 else SamplingCohort
        cohort = search(params, self.model.device, self._stop_text, vocabulary_of(self.model))
        return Running(cohort, self._backend.cache(cohort.width))
