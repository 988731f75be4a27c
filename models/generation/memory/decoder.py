"""What holds the keys and values of all that runs, and makes a step's logits with them. It knows no search, no queue.

Policy is one; the decoder is what differs between devices. On CPUs products are made to measure for each document, on
GPUs all documents share one shape, so that a step can be a graph: docs/architecture.md compares the two.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from batchloom.models.generation.memory.cpu.decoder import PooledDecoder
from batchloom.models.generation.memory.gpu.decoder import BlockDecoder
from batchloom.models.generation.memory.prompts import Prefilled
from batchloom.models.generation.requests import Request


class CohortCache(Protocol):
    """What a cohort's units said, in the cohort's order."""

    def extend(self, num_new: int) -> None:
        """Units that start, without entries."""
        ...

    def keep(self, units: Sequence[int]) -> None:
        """Forgets all units but these."""
        ...

    def reorder(self, parents_GB: Tensor) -> None:
        """In each unit, sequence b goes on where sequence parents_GB[unit, b] was."""
        ...


class Decoder(Protocol):
    padding: float
    """Bytes that it holds for each byte of keys and values, at most."""

    def cache(self, width: int) -> Any:
        """A cohort's CohortCache for units of `width` sequences."""
        ...

    def remember(self, prefilled: Prefilled) -> dict[Request, Any]:
        """Keeps prompts; what is returned for each request comes back in `logits` and `forget`."""
        ...

    def forget(self, prompt: Any) -> None:
        """Gives back what a request's prompt held."""
        ...

    def logits(self, input_ids_N: Tensor, position_N: Tensor, cohorts: Sequence[tuple[Any, Sequence[Any]]]) -> Tensor:
        """Logits [N, V] of one step; for each cohort its cache, and for each of its rows the prompt."""
        ...


def decoder_of(model: Any) -> Decoder:
    """The decoder that fits a model's device."""
    return BlockDecoder(model) if model.device.type == "cuda" else PooledDecoder(model)
