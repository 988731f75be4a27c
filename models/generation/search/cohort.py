"""A cohort: the running requests whose params differ in lengths at most, so that one vectorized search serves them all.

Requests with other params run in other cohorts; all cohorts share each forward pass of the model. This file knows what
any search needs; beam.py and sampling.py are the searches.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchloom.models.generation.params import GenerationParams
from batchloom.models.generation.requests import FinishReason, Request, SequenceOutput
from batchloom.models.generation.search.history import History
from batchloom.models.generation.search.processors import needs_source, processors_of
from batchloom.models.generation.search.vocabulary import Vocabulary

StopText = Callable[[Sequence[int]], str]  # tokens to the text in which stop strings are looked for


@dataclass(frozen=True)
class Done:
    """A request that is answered."""

    request: Request
    outputs: list[SequenceOutput]


@dataclass(frozen=True)
class Step:
    """What one step of a search did, for those who keep caches in the same order."""

    done: list[Done]
    parents_GB: Tensor | None = None
    """For each unit that ran: which of its sequences each goes on from, or None if each from itself."""
    kept: list[int] | None = None
    """The units that go on, or None if all do. A unit: a request's beams, or one sequence where each chooses alone."""


class Cohort(ABC):
    """G requests in R rows; `step` takes logits [R, V] (and may overwrite them) and chooses every row's next token."""

    def __init__(
        self, params: GenerationParams, device: torch.device, stop_text: StopText | None, vocabulary: Vocabulary
    ) -> None:
        self.params = params
        self.vocabulary = vocabulary
        self.requests: list[Request] = []
        self.history = History(device, needs_source(params))
        self.processors = processors_of(params, vocabulary, device)
        self._stop_text = stop_text

    @property
    def width(self) -> int:
        """Sequences in a unit."""
        return 1

    def extend(self, requests: Sequence[Request]) -> None:
        """Requests that start with this step."""
        self.requests = [*self.requests, *requests]
        self.history.extend(requests)

    @abstractmethod
    def step(self, logits_RV: Tensor) -> Step:
        """One more token for every row, and the requests that are done with it."""

    def keep(self, indexes: Sequence[int], rows: Sequence[int]) -> None:
        """Forgets all requests and rows but these."""
        self.requests = [self.requests[index] for index in indexes]
        self.history.keep(rows)

    def stops(self, new_tokens: Sequence[int]) -> bool:
        """Whether a stop string stands in the text that the last token completes.

        A sequence ends as soon as one does, so nothing before the last few tokens can hold one.
        """
        assert self._stop_text is not None
        longest = max(len(stop.encode()) for stop in self.params.stops)
        # A token is a byte of text at least, but for special tokens, which are none; some slack for those.
        text = self._stop_text(new_tokens[-(longest + 8) :])
        return any(stop in text for stop in self.params.stops)

    def answer(self, new_tokens: list[int], log_probs: list[float], score: float | None = None) -> SequenceOutput:
        """A finished sequence; without a score of its own it gets the sum of its log-probabilities."""
        return SequenceOutput(
            token_ids=new_tokens,
            score=sum(log_probs) if score is None else score,
            finish_reason=self._reason(new_tokens),
            log_probs=log_probs,
        )

    def _reason(self, new_tokens: list[int]) -> FinishReason:
        if new_tokens and new_tokens[-1] in self.params.eos_token_ids:
            return "eos"
        return "stop" if self.params.stops and self.stops(new_tokens) else "length"
