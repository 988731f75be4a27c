"""A cohort: running requests whose params differ in lengths at most, so that one vectorized search serves them all.

Requests with other params run in other cohorts; all cohorts share each forward pass of the model. This file has what
any search needs; beam_search.py and sampling.py are the searches.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchloom.models.generation.params import GenerationParams
from batchloom.models.generation.requests import FinishReason, NoAnswer, Request, SequenceOutput
from batchloom.models.generation.search.history import History
from batchloom.models.generation.search.processors import needs_prompt, processors_of
from batchloom.models.generation.search.vocabulary import Vocabulary
from batchloom.models.not_finite import not_finite

StopText = Callable[[Sequence[int]], str]  # token ids to the text in which stop strings are looked for


@dataclass(frozen=True)
class Done:
    """A request that is answered, or has an error in place of outputs."""

    request: Request
    outputs: list[SequenceOutput]
    error: NoAnswer | None = None


@dataclass(frozen=True)
class Step:
    """What one step of a search did, for caches that must be kept in the same order.

    A unit: a request's beams, or one sequence where sequences are searched independently.
    """

    done: list[Done]
    parents_GB: Tensor | None = None
    """For each unit that ran, which of its sequences each continues; None: each continues itself."""
    kept: list[int] | None = None
    """The units that go on; None: all."""


class Cohort(ABC):
    """G requests in R rows; `step` takes logits [R, V] (and may overwrite them) and chooses every row's next token."""

    def __init__(
        self, params: GenerationParams, device: torch.device, stop_text: StopText | None, vocabulary: Vocabulary
    ) -> None:
        self.params = params
        self.vocabulary = vocabulary
        self.requests: list[Request] = []
        self.history = History(device, needs_prompt(params))
        self.processors = processors_of(params, vocabulary, device)
        self._stop_text = stop_text

    @property
    def width(self) -> int:
        """Sequences in a unit."""
        return 1

    def extend(self, requests: Sequence[Request]) -> None:
        """Add requests that start with the next step."""
        self.requests = [*self.requests, *requests]
        self.history.extend(requests)

    @abstractmethod
    def step(self, logits_RV: Tensor) -> Step:
        """Choose every row's next token; return the requests that are done, and how the rows moved."""

    def keep(self, indexes: Sequence[int], rows: Sequence[int]) -> None:
        """Drop all requests and rows but these."""
        self.requests = [self.requests[index] for index in indexes]
        self.history.keep(rows)

    def stops(self, new_tokens: Sequence[int]) -> bool:
        """Return whether the text of these tokens contains a stop string that the last token completes.

        Only the last few tokens are looked at: an earlier stop string would have ended the sequence earlier.
        """
        assert self._stop_text is not None
        longest = max(len(stop.encode()) for stop in self.params.stops)
        # A token is at least one byte of text, except for special tokens, which are none; 8 more allow for those.
        text = self._stop_text(new_tokens[-(longest + 8) :])
        return any(stop in text for stop in self.params.stops)

    def answer(self, new_tokens: list[int], log_probs: list[float], score: float | None = None) -> SequenceOutput:
        """Return a finished sequence; its score is by default the sum of its log-probabilities."""
        return SequenceOutput(
            token_ids=new_tokens,
            score=sum(log_probs) if score is None else score,
            finish_reason=self._reason(new_tokens),
            log_probs=log_probs,
        )

    def no_answer(self, num_new_tokens: int, dtype: torch.dtype) -> NoAnswer:
        """Return the error of a request for whose token of this number the model gave NaN or infinity."""
        return NoAnswer("not_finite", not_finite(f"The logits of new token {num_new_tokens}", dtype))

    def _reason(self, new_tokens: list[int]) -> FinishReason:
        if new_tokens and new_tokens[-1] in self.params.eos_token_ids:
            return "eos"
        return "stop" if self.params.stops and self.stops(new_tokens) else "length"
