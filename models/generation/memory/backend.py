"""The decode backend holds the KV cache of all running requests and computes a step's logits. It knows no search.

Scheduling and search are the same on all devices; the backend is what differs. On CPUs each prompt has products of its
exact size; on GPUs all prompts share one shape, so that a step can be a CUDA graph. docs/architecture.md compares the
two.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from batchloom.models.generation.memory.beginnings import Beginnings
from batchloom.models.generation.memory.cpu.backend import PooledBackend
from batchloom.models.generation.memory.gpu.backend import PagedBackend
from batchloom.models.generation.memory.prefill import Prefilled
from batchloom.models.generation.model import GenerativeModel
from batchloom.models.generation.requests import Request

# What a backend holds of a request's prompt: its own type, which nobody else looks into.
HeldPrompt = Any


class CohortCache(Protocol):
    """Keys and values of the tokens that a cohort generated, by unit, in the cohort's order."""

    def extend(self, num_new: int, beginnings: Beginnings | None = None) -> None:
        """Append units without entries, or with the entries that each one's sequences begin with."""
        ...

    def keep(self, units: Sequence[int], erases: bool = False) -> None:
        """Drop all units but these; `erases`: with zeros in place of what they leave, which may not be finite.

        Masked entries of whoever takes their place would spread NaN: 0 * NaN is NaN.
        """
        ...

    def reorder(self, parents_GB: Tensor) -> None:
        """In each unit, let sequence b continue from sequence parents_GB[unit, b]."""
        ...


class DecodeBackend(Protocol):
    padding: float
    """Bytes held for each byte of keys and values, at most."""

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks that are in use, and that are allocated; (0, 0) where memory is not made of blocks."""
        ...

    def cache(self, width: int) -> Any:
        """Return an empty CohortCache, of the backend's own class, for units of `width` sequences."""
        ...

    def hold(self, prefilled: Prefilled) -> dict[Request, HeldPrompt]:
        """Store the keys and values of prompts; return for each request what `logits` and `release` take."""
        ...

    def release(self, prompt: HeldPrompt, erases: bool = False) -> None:
        """Free what a request's prompt holds; `erases` as in CohortCache."""
        ...

    def logits(
        self, input_ids_N: Tensor, position_N: Tensor, cohorts: Sequence[tuple[Any, Sequence[HeldPrompt]]]
    ) -> Tensor:
        """Return the logits [N, V] of one step; `cohorts`: each one's cache, and the prompt of each of its rows."""
        ...


def backend_of(model: GenerativeModel) -> DecodeBackend:
    """Return the backend that fits a model's device."""
    return PagedBackend(model) if model.device.type == "cuda" else PooledBackend(model)
