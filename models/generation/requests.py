"""Requests and their answers. They know no tensor and no model."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from batchloom.models.errors import RequestError
from batchloom.models.generation.params import GenerationParams

FinishReason = Literal["eos", "length", "stop"]


@dataclass(frozen=True)
class SequenceOutput:
    """One answer: new tokens only, including an end token, without start tokens and padding."""

    token_ids: list[int]
    score: float
    """Beam search: the sum of log-probabilities over new tokens ** length_penalty, transformers' sequences_scores.
    Greedy search and sampling: the sum of the tokens' log-probabilities in the distribution they were chosen from."""
    finish_reason: FinishReason
    log_probs: list[float] = field(default_factory=list)
    """The log-probability of each token in the distribution it was chosen from: after processors and warpers."""


@dataclass(frozen=True)
class NoAnswer:
    """Why a request has no outputs."""

    kind: Literal["out_of_memory", "not_finite"]
    """out_of_memory: on this request alone. not_finite: the model gave NaN or infinity where a token was chosen."""
    message: str


@dataclass(frozen=True)
class RequestOutput:
    """All answers to one request, best first (samples: by number)."""

    request_id: Hashable
    num_prompt_tokens: int
    outputs: list[SequenceOutput]
    error: NoAnswer | None = None
    """Why there are no outputs."""


@dataclass(eq=False)
class Request:
    """A prompt on its way through the engine. `params` are resolved: nothing in them is left to a default."""

    request_id: Hashable
    prompt_ids: list[int]
    params: GenerationParams
    seed: int = 0
    is_encoder_decoder: bool = True
    max_positions: int | None = None  # of the decoder; None: not limited
    answer_prefix: Sequence[int] = ()
    """Tokens that the answer begins with: given to the decoder, not generated. A decoder-only model reads them as the
    end of its prompt, of which they are part then."""
    start_ids: list[int] = field(init=False)
    """What the decoder reads before the first new token: the start token, or a decoder-only model's prompt; then the
    answer's prefix."""
    # Lengths count the decoder's tokens, start tokens included. They are computed once, as every decode step reads
    # them.
    num_start_tokens: int = field(init=False)
    max_length: int = field(init=False)
    min_length: int = field(init=False)  # end tokens are banned before
    asked_length: int = field(init=False)  # max_length before it was cut at the decoder's positions
    num_sequences: int = field(init=False)  # that grow at the same time

    def __post_init__(self) -> None:
        params = self.params
        if self.is_encoder_decoder:
            self.start_ids = [_start_token(params), *self.answer_prefix]
        else:
            self.prompt_ids = self.start_ids = [*self.prompt_ids, *self.answer_prefix]
        self.num_start_tokens = len(self.start_ids)
        self.num_sequences = params.num_sequences
        if params.max_new_tokens is not None:
            self.max_length = self.num_start_tokens + params.max_new_tokens
        else:
            assert params.max_length is not None, "params are not resolved"
            self.max_length = params.max_length
        self.asked_length = self.max_length
        if self.max_positions is not None:
            # The last token is never an input, so it needs no position. An answer may end before; where it does not,
            # the reference fails.
            self.max_length = min(self.max_length, self.max_positions + 1)
        if params.min_new_tokens is not None:
            self.min_length = self.num_start_tokens + params.min_new_tokens
        else:
            self.min_length = params.min_length or 0

    @property
    def max_new_tokens(self) -> int:
        return self.max_length - self.num_start_tokens

    @property
    def begun_ids(self) -> list[int]:
        """What the decoder behind an encoder computes before its first step, which reads the last start token."""
        return self.start_ids[:-1] if self.is_encoder_decoder else []

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens that are computed when the request starts."""
        return len(self.prompt_ids) + len(self.begun_ids)

    @property
    def max_own_tokens(self) -> int:
        """Tokens whose keys and values each of its sequences holds at most, apart from the prompt."""
        return len(self.begun_ids) + self.max_new_tokens

    @property
    def max_cached_tokens(self) -> int:
        """Tokens whose keys and values this request holds at most: the prompt once, the others for each sequence."""
        return len(self.prompt_ids) + self.num_sequences * self.max_own_tokens

    def check(self, vocab_size: int) -> None:
        """Check that a model with this vocabulary can serve the request.

        Raises: RequestError for the prompt, the answer's prefix or the lengths, ParamsError where params name tokens
        outside the vocabulary.
        """
        self.params.check_vocabulary(vocab_size)
        if not self.prompt_ids:
            raise RequestError("The prompt is empty; a request needs one token at least.")
        _check_ids("prompt", self.prompt_ids, vocab_size)
        _check_ids("answer's prefix", self.answer_prefix, vocab_size)
        positions, num_given = self.max_positions, len(self.answer_prefix)
        if positions is not None and len(self.prompt_ids) > positions:
            raise RequestError(
                f"The prompt has {len(self.prompt_ids)} tokens{self._of_them}; the model has {positions} positions. "
                f"Shorten, truncate or split the text{self._to_what_is_left(positions)}."
            )
        if positions is not None and self.num_start_tokens > positions:
            raise RequestError(
                f"The answer's prefix has {num_given} tokens and leaves no room for an answer: the decoder has "
                f"{positions} positions, one of them for the token that it starts from. Shorten the prefix."
            )
        if self.max_new_tokens < 1:
            raise RequestError(
                f"max_length = {self.params.max_length} leaves no room after the {self.num_start_tokens} tokens"
                f"{self._of_them} that the decoder begins with. Raise max_length, or set max_new_tokens."
            )
        if positions is not None and min(self.min_length, self.asked_length) > positions + 1:
            raise RequestError(
                f"At least {self.min_length} tokens asked of a decoder with {positions} positions. "
                f"Set min_new_tokens to {positions - self.num_start_tokens + 1} at most."
            )

    def _to_what_is_left(self, positions: int) -> str:
        left = positions - len(self.answer_prefix)
        return f": {left} tokens are left for it" if self.answer_prefix and left > 0 else ""

    @property
    def _of_them(self) -> str:
        """How many of the decoder's first tokens are the answer's prefix, for errors."""
        return f" ({len(self.answer_prefix)} of them the answer's prefix)" if self.answer_prefix else ""


def _check_ids(what: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """Raise RequestError where a token is none of the vocabulary."""
    low, high = min(token_ids, default=0), max(token_ids, default=0)
    if low < 0 or high >= vocab_size:
        raise RequestError(
            f"The {what} holds ids from {low} to {high}; the model's vocabulary is 0 to {vocab_size - 1}. "
            "Use the tokenizer that belongs to this checkpoint."
        )


def _start_token(params: GenerationParams) -> int:
    start = params.decoder_start_token_id
    if start is None:
        start = params.bos_token_id
    if start is None:
        raise RequestError("The decoder has no token to start from: set decoder_start_token_id or bos_token_id.")
    return start
