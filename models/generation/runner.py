"""The runner computes what the scheduler decided: prompts into caches, then one token a step. It knows no queue."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.generation.beam import BeamCohort
from models.generation.cohort import Cohort, Done
from models.generation.kv_cache import CachedAttention, RequestCache
from models.generation.params import GenerationParams
from models.generation.sampling import GreedyCohort
from models.generation.sequence import Request
from models.layers.attention import PackedAttention
from models.layers.positions import positions_of


class Runner:
    """A model and the requests that run on it, in cohorts of equal params, each request with its cache."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._cohorts: dict[GenerationParams, Cohort] = {}
        self._caches: dict[Request, RequestCache] = {}

    def prefill(self, requests: Sequence[Request]) -> int:
        """Computes the prompts of requests that start; returns the positions that attention saw, padding included."""
        memories, num_positions = self._encode(requests)
        for request, memory in zip(requests, memories, strict=True):
            cache = RequestCache(
                self.model.num_layers,
                self.model.num_heads,
                self.model.head_dim,
                request.num_sequences,
                self.model.dtype,
                self.model.device,
            )
            cache.memory = memory
            self._caches[request] = cache
        by_params: dict[GenerationParams, list[Request]] = {}
        for request in requests:
            by_params.setdefault(request.params, []).append(request)
        for params, members in by_params.items():
            if params not in self._cohorts:
                self._cohorts[params] = _cohort_of(params, self.model.device)
            self._cohorts[params].extend(members)
        return num_positions

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

    def _encode(self, requests: Sequence[Request]) -> tuple[list[list[tuple[Tensor, Tensor]]], int]:
        """Each request's keys and values of the encoder, per decoder layer [H, S, K]; prompts packed, not padded."""
        lengths = [len(request.prompt_ids) for request in requests]
        input_ids_N = torch.tensor(
            [token for request in requests for token in request.prompt_ids], device=self.model.device
        )
        context = PackedAttention(lengths, causal=False)
        encoded_ND = self.model.encode(input_ids_N, positions_of(lengths).to(self.model.device), context)
        layers = [
            (k_NHK.transpose(0, 1).split(lengths, dim=1), v_NHK.transpose(0, 1).split(lengths, dim=1))
            for k_NHK, v_NHK in self.model.cross_keys_values(encoded_ND)
        ]
        # Contiguous, each request's own: the packed tensors can go, and each step streams through memory once.
        memories = [
            [(k[index].contiguous(), v[index].contiguous()) for k, v in layers] for index in range(len(lengths))
        ]
        return memories, context.num_padded_tokens


def _cohort_of(params: GenerationParams, device: torch.device) -> Cohort:
    return BeamCohort(params, device) if (params.num_beams or 1) > 1 else GreedyCohort(params, device)
