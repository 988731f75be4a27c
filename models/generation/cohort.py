"""A cohort: the running requests that have equal params, so that one vectorized search serves them all.

Requests with other params run in other cohorts; all cohorts share each forward pass of the model. This file knows what
any search needs; beam.py and sampling.py are the searches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.generation.history import History
from models.generation.params import GenerationParams
from models.generation.processors import needs_source, processors_of
from models.generation.sequence import FinishReason, Request, SequenceOutput


@dataclass(frozen=True)
class Done:
    """A request that is answered, and its place in the cohort before it left."""

    request: Request
    index: int
    outputs: list[SequenceOutput]


@dataclass(frozen=True)
class Step:
    """What one step of a search did, for those who keep caches in the same order."""

    parents: list[Tensor | None]
    """For each request that ran: which of its sequences each goes on from, or None if each from itself."""
    done: list[Done]


class Cohort:
    """G requests in R rows; `step` takes logits [R, V] (and may overwrite them) and chooses every row's next token."""

    def __init__(self, params: GenerationParams, device: torch.device) -> None:
        self.params = params
        self.requests: list[Request] = []
        self.history = History(device, needs_source(params))
        self.processors = processors_of(params)
        self.max_length_G = torch.zeros(0, dtype=torch.long, device=device)
        self.num_start_tokens_G = self.max_length_G

    def extend(self, requests: Sequence[Request]) -> None:
        """Requests that start with this step."""
        self.requests = [*self.requests, *requests]
        self.history.extend(requests)
        self._renew()

    def step(self, logits_RV: Tensor) -> Step:
        raise NotImplementedError

    def keep(self, indexes: Sequence[int], rows: Sequence[int]) -> None:
        """Forgets all requests and rows but these."""
        self.requests = [self.requests[index] for index in indexes]
        self.history.keep(rows)
        self._renew()

    def reason(self, new_tokens: list[int]) -> FinishReason:
        """Why a sequence that is finished stopped."""
        return "eos" if new_tokens and new_tokens[-1] in self.params.eos_token_ids else "length"

    def _renew(self) -> None:
        device = self.max_length_G.device
        self.max_length_G = torch.tensor([request.max_length for request in self.requests], device=device)
        self.num_start_tokens_G = torch.tensor([request.num_start_tokens for request in self.requests], device=device)
