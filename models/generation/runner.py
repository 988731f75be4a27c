"""The runner computes what the scheduler decided: prompts into caches, then one token a step. It knows no queue."""

from collections.abc import Sequence
from typing import Any

import torch

from models.generation.beam import BeamCohort
from models.generation.cohort import Cohort, Done, StopText
from models.generation.kv_cache import CachedAttention, RequestCache
from models.generation.params import GenerationParams
from models.generation.prompts import prefill
from models.generation.sampling import SamplingCohort
from models.generation.sequence import Request


class Runner:
    """A model and the requests that run on it, in cohorts of equal params, each request with its cache."""

    def __init__(self, model: Any, stop_text: StopText | None = None) -> None:
        self.model = model
        self._stop_text = stop_text
        self._cohorts: dict[GenerationParams, Cohort] = {}
        self._caches: dict[Request, RequestCache] = {}

    def prefill(self, requests: Sequence[Request]) -> int:
        """Computes the prompts of requests that start; returns the positions that attention saw, padding included."""
        prefilled = prefill(self.model, requests)
        self._caches |= dict(zip(requests, prefilled.caches, strict=True))
        by_params: dict[GenerationParams, list[Request]] = {}
        for request in requests:
            by_params.setdefault(request.params, []).append(request)
        for params, members in by_params.items():
            if params not in self._cohorts:
                search = BeamCohort if (params.num_beams or 1) > 1 else SamplingCohort
                self._cohorts[params] = search(params, self.model.device, self._stop_text)
            self._cohorts[params].extend(members)
        return prefilled.num_positions

    def clear(self) -> None:
        """Forgets everything that runs."""
        self._cohorts.clear()
        self._caches.clear()

    def decode(self) -> list[Done]:
        """One token for every running sequence; returns the requests that are done with it."""
        cohorts = list(self._cohorts.values())
        rows = [cohort.requests for cohort in cohorts]
        input_ids_N = torch.cat([cohort.history.last_tokens() for cohort in cohorts])
        positions_N = torch.cat([cohort.history.length_R for cohort in cohorts]) - 1
        context = CachedAttention([self._caches[request] for requests in rows for request in requests])
        logits_NV = self.model.logits(self.model.decode(input_ids_N, positions_N, context))
        done: list[Done] = []
        parts = logits_NV.split([cohort.history.num_rows for cohort in cohorts])
        for cohort, requests, logits_RV in zip(cohorts, rows, parts, strict=True):
            step = cohort.step(logits_RV)
            for request, parents in zip(requests, step.parents, strict=True):
                if parents is not None:
                    self._caches[request].reorder(parents)
            done += step.done
        for finished in done:
            del self._caches[finished.request]
        self._cohorts = {params: cohort for params, cohort in self._cohorts.items() if cohort.requests}
        return done
