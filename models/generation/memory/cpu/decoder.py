"""The decoder for CPUs: a tensor for each prompt, pools by age for what was said, exact shapes. It knows no search."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from batchloom.models.generation.memory.cpu.aged_pools import AgedPools
from batchloom.models.generation.memory.cpu.attention import StepAttention
from batchloom.models.generation.memory.cpu.entry_pool import EntryPool, PromptMemory
from batchloom.models.generation.memory.prompts import Prefilled, memories
from batchloom.models.generation.requests import Request

Prompt = tuple[PromptMemory, ...]  # a common beginning, and the rest; either may be missing


class PooledDecoder:
    """A model, and steps over any number of cohorts."""

    padding = 1.0

    def __init__(self, model: Any) -> None:
        self._model = model

    def cache(self, width: int) -> AgedPools:
        model = self._model
        like = torch.empty(0, dtype=model.dtype, device=model.device)
        sizes = (model.num_layers, model.num_heads, model.head_dim, width)
        return AgedPools(lambda: EntryPool(*sizes, like, model.alibi_slopes))

    def remember(self, prefilled: Prefilled) -> dict[Request, Prompt]:
        remembered: dict[Request, Prompt] = {}
        for prompts in prefilled.prompts:
            prefix = prompts.prefix
            shared = () if prefix is None else (prefix.memory,)
            start = 0 if prefix is None else len(prefix.token_ids)
            apart = iter(memories(prompts.layers, [n for n in prompts.lengths if n], start, self._model.alibi_slopes))
            for request, length in zip(prompts.requests, prompts.lengths, strict=True):
                remembered[request] = (*shared, next(apart)) if length else shared
        return remembered

    def forget(self, prompt: Prompt) -> None:
        """Nothing to give back: memory goes with the last who holds it."""

    def logits(
        self, input_ids_N: Tensor, position_N: Tensor, cohorts: Sequence[tuple[AgedPools, Sequence[Prompt]]]
    ) -> Tensor:
        parts = [part for pools, prompts in cohorts for part in pools.parts(prompts)]
        context = StepAttention(parts, position_N, self._model.is_encoder_decoder, self._model.alibi_slopes)
        logits_NV: Tensor = self._model.local_logits(self._model.decode(input_ids_N, position_N, context))
        return logits_NV
