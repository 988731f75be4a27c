"""The decode backend of CPUs: one tensor a prompt, entry pools by age, exact shapes. It knows no search."""

from collections.abc import Sequence

import torch
from torch import Tensor

from batchloom.models.generation.memory.cpu.aged_pools import AgedPools
from batchloom.models.generation.memory.cpu.attention import StepAttention
from batchloom.models.generation.memory.cpu.entry_pool import EntryPool
from batchloom.models.generation.memory.cpu.fused import FusedStepAttention
from batchloom.models.generation.memory.prefill import Prefilled, split_memories
from batchloom.models.generation.memory.prompt_memory import PromptMemory
from batchloom.models.generation.model import GenerativeModel
from batchloom.models.generation.requests import Request
from batchloom.models.layers.attention import AttentionContext
from batchloom.models.layers.native.library import bfloat16_kernels

PromptMemories = tuple[PromptMemory, ...]  # of one prompt: a common prefix, then the rest; either may be missing


class PooledBackend:
    """Prompts as tensors of their own, generated tokens in pools, and decode steps over any number of cohorts."""

    padding = 1.0

    def __init__(self, model: GenerativeModel) -> None:
        self._model = model
        # float32 stays with plain torch: exact answers are the same on every machine that computes them.
        self._kernels = bfloat16_kernels() if model.dtype == torch.bfloat16 and model.device.type == "cpu" else None

    @property
    def blocks(self) -> tuple[int, int]:
        """None: each prompt and each pool has memory of its exact size."""
        return 0, 0

    def cache(self, width: int) -> AgedPools:
        """Return an empty cache for units of `width` sequences."""
        model = self._model
        like = torch.empty(0, dtype=model.dtype, device=model.device)
        sizes = (model.num_layers, model.num_heads, model.head_dim, width)
        return AgedPools(lambda: EntryPool(*sizes, like, model.alibi_slopes))

    def hold(self, prefilled: Prefilled) -> dict[Request, PromptMemories]:
        """Split packed prompts into one memory a request, after the memory of a common prefix."""
        held: dict[Request, PromptMemories] = {}
        for batch in prefilled.batches:
            shared = () if batch.prefix is None else (batch.prefix.memory,)
            start = 0 if batch.prefix is None else len(batch.prefix.token_ids)
            lengths = [length for length in batch.lengths if length]
            own = iter(split_memories(batch.layers, lengths, start, self._model.alibi_slopes))
            for request, length in zip(batch.requests, batch.lengths, strict=True):
                held[request] = (*shared, next(own)) if length else shared
        return held

    def release(self, prompt: PromptMemories, erases: bool = False) -> None:
        """No-op: the memory is freed with its last reference."""

    def logits(
        self, input_ids_N: Tensor, position_N: Tensor, cohorts: Sequence[tuple[AgedPools, Sequence[PromptMemories]]]
    ) -> Tensor:
        """Return the logits [N, V] of one decode step."""
        pool_rows = [rows for pools, prompts in cohorts for rows in pools.rows(prompts)]
        about = pool_rows, position_N, self._model.is_encoder_decoder, self._model.alibi_slopes
        context: AttentionContext = (
            StepAttention(*about) if self._kernels is None else FusedStepAttention(self._kernels, *about)
        )
        return self._model.local_logits(self._model.decode(input_ids_N, position_N, context))
