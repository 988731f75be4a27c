"""The generation options of one request, under transformers' names. It knows no model and no tensor.

A field left at None is unset: the checkpoint's value is used in its place, and after that transformers' default. What
the checkpoint sets and a request is to do without is named in `without`; in a job file it is null.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from batchloom.models.errors import ParamsError
from batchloom.models.generation.absent_options import RESOURCE_HINTS, absent_option, is_neutral
from batchloom.models.generation.option_values import (
    ABOVE_ZERO,
    ANY,
    BIASES,
    COUNT,
    COUNT_FROM_ONE,
    DECAY,
    EARLY_STOPPING,
    NUMBER,
    SHARE,
    SHARE_ABOVE_ZERO,
    STRINGS,
    SWITCH,
    TOKEN,
    TOKEN_OR_TOKENS,
    TOKENS,
    WORDS,
    option,
    options_of,
    problems_of,
    tokens_of,
)

TokenIds = int | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """Options of one request. Lengths count tokens; `max_length` and `min_length` count the decoder's start tokens too.

    Raises: ParamsError, when made, naming every option with a value that cannot be used, or else every contradiction.
    """

    # How long. max_new_tokens wins over max_length, min_new_tokens over min_length.
    max_length: int | None = option(COUNT_FROM_ONE)  # counts start tokens: an encoder-decoder's first, else the prompt
    max_new_tokens: int | None = option(COUNT_FROM_ONE)
    min_length: int | None = option(COUNT)  # end tokens are banned before
    min_new_tokens: int | None = option(COUNT)
    stop_strings: str | Sequence[str] | None = option(STRINGS)  # a sequence ends with the token that completes one

    # How to search.
    num_beams: int | None = option(COUNT_FROM_ONE, 1)
    num_return_sequences: int | None = option(COUNT_FROM_ONE, 1)
    # True: stop when num_beams sequences are finished.
    early_stopping: bool | Literal["never"] | None = option(EARLY_STOPPING, False, only="beams")
    # A finished beam's score is divided by its new tokens to this power.
    length_penalty: float | None = option(NUMBER, 1.0, only="beams")
    do_sample: bool | None = option(SWITCH, False)

    # What sampling draws from, in the order of application.
    temperature: float | None = option(ABOVE_ZERO, 1.0, only="sampling")
    top_h: float | None = option(SHARE_ABOVE_ZERO, only="sampling")  # of the entropy of the 100 likeliest tokens
    top_k: int | None = option(COUNT, 50, only="sampling")  # 0: all
    top_p: float | None = option(SHARE, 1.0, only="sampling")
    min_p: float | None = option(SHARE, only="sampling")
    typical_p: float | None = option(SHARE_ABOVE_ZERO, 1.0, only="sampling")
    epsilon_cutoff: float | None = option(SHARE, 0.0, only="sampling")
    eta_cutoff: float | None = option(SHARE, 0.0, only="sampling")
    renormalize_logits: bool | None = option(SWITCH, False)

    # Tokens that are banned, forced or penalized.
    # (token ids, what is added to the last one's logit where it comes after the others); a mapping is taken too.
    sequence_bias: Sequence[tuple[Sequence[int], float]] | None = option(BIASES, names_tokens=True)
    encoder_repetition_penalty: float | None = option(ABOVE_ZERO, 1.0)
    repetition_penalty: float | None = option(ABOVE_ZERO, 1.0)
    no_repeat_ngram_size: int | None = option(COUNT, 0)
    encoder_no_repeat_ngram_size: int | None = option(COUNT, 0)
    bad_words_ids: Sequence[Sequence[int]] | None = option(WORDS, names_tokens=True)
    forced_bos_token_id: int | None = option(TOKEN, names_tokens=True)
    forced_eos_token_id: TokenIds | None = option(TOKEN_OR_TOKENS, names_tokens=True)
    exponential_decay_length_penalty: tuple[int, float] | None = option(DECAY)  # (first new token, factor)
    suppress_tokens: Sequence[int] | None = option(TOKENS, names_tokens=True)
    begin_suppress_tokens: Sequence[int] | None = option(TOKENS, names_tokens=True)

    # Special tokens.
    bos_token_id: int | None = option(TOKEN, is_special_token=True)
    # Any of several ends a sequence.
    eos_token_id: TokenIds | None = option(TOKEN_OR_TOKENS, names_tokens=True, is_special_token=True)
    pad_token_id: int | None = option(ANY, is_special_token=True)  # no answer depends on it
    decoder_start_token_id: int | None = option(TOKEN, names_tokens=True, is_special_token=True)

    without: Sequence[str] = ()
    """Options of which the checkpoint's value is not used."""

    def __post_init__(self) -> None:
        for field in fields(self):  # lists become tuples: params are a cohort's key, so they must be hashable
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))
        object.__setattr__(self, "without", tuple(sorted(set(self.without))))
        # Values first: contradictions are found by comparing them, which needs valid ones.
        problems = [f"without names {name!r}, which is no option" for name in self.without if not _is_known(name)]
        if problems := [*problems, *problems_of(self)] or _contradictions(self):
            raise ParamsError("; ".join(problems))

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> "GenerationParams":
        """Return the params of a job file's mapping. Null: the checkpoint's value is not used.

        Raises: ParamsError naming every option that is not ours, and as GenerationParams(...) does.
        """
        known = set(OPTIONS)
        unknown = [name for name in options if name not in known and not is_neutral(name, options[name])]
        if unknown:
            raise ParamsError(
                "; ".join(
                    f"generation option {name} = {options[name]!r} is not one we have" + _suggestion(name, known)
                    for name in unknown
                )
            )
        asked = {name: value for name, value in options.items() if name in known}
        return cls(**asked, without=[name for name, value in options.items() if value is None and _is_known(name)])

    def to_dict(self) -> dict[str, Any]:
        """Return the options that are set, with lists in place of tuples, for JSON and YAML; of `without`, null."""
        values = {name: _thawed(value) for name, value in asdict(self).items() if name in OPTIONS}
        return {name: value for name, value in values.items() if value is not None} | {
            name: None for name in self.without if values.get(name) is None
        }

    def resolve(self, defaults: Mapping[str, Any]) -> "GenerationParams":
        """Return these params with the checkpoint's `defaults`, and then transformers' own, where they are unset.

        Idempotent. A length that the caller set in one spelling is not overruled by the checkpoint's value in the
        other.

        Raises: ParamsError where the checkpoint asks for what changes tokens and is not ours, or the result contradicts
        itself.
        """
        chosen = {name: getattr(self, name) for name in OPTIONS}
        owned = {name for name, value in chosen.items() if value is not None}
        for name, value in defaults.items():
            if value is None or name in self.without or owned & _SAME_MATTER.get(name, {name}):
                continue
            if name in chosen:
                chosen[name] = value
            elif name not in RESOURCE_HINTS and not is_neutral(name, value):
                raise ParamsError(
                    f"the checkpoint's generation defaults ask for {name} = {value!r}, which is not an option we have"
                    f"{_suggestion(name, set())}. Set {name} to null to generate without it"
                )
        for winner, loser in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
            if chosen[winner] is not None:
                chosen[loser] = None
        if chosen["max_length"] is None and chosen["max_new_tokens"] is None:
            chosen["max_new_tokens"] = 20
        for low, high in (("min_new_tokens", "max_new_tokens"), ("min_length", "max_length")):
            # A checkpoint's least length above the caller's greatest bans end tokens before the last position.
            if low not in owned and chosen[low] is not None and chosen[high] is not None:
                chosen[low] = min(chosen[low], chosen[high])
        chosen = {name: DEFAULTS.get(name) if value is None else value for name, value in chosen.items()}
        if not chosen["do_sample"]:
            # The checkpoint's values have no effect then; a caller's stay, and are refused as a contradiction.
            chosen |= {name: value for name, value in _SAMPLING_ONLY.items() if name not in owned}
        if chosen["num_beams"] == 1:
            chosen |= _BEAMS_ONLY
        return replace(GenerationParams(), **chosen, without=self.without)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Check that every token named is one of a vocabulary of this size.

        Raises: ParamsError naming every option that has another token.
        """
        if self._highest_token < vocab_size:
            return
        unknown = [f"{name} names token {token}" for name, token in tokens_of(self) if token >= vocab_size]
        raise ParamsError(f"{'; '.join(unknown)}; the model's vocabulary is 0 to {vocab_size - 1}")

    @cached_property
    def _highest_token(self) -> int:
        return max((token for _, token in tokens_of(self)), default=-1)

    @cached_property
    def search(self) -> "GenerationParams":
        """These params without lengths: a cohort's key, as requests that differ only in lengths share a search."""
        return replace(self, max_length=None, max_new_tokens=None, min_length=None, min_new_tokens=None)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a sequence."""
        return as_ids(self.eos_token_id)

    @property
    def stops(self) -> tuple[str, ...]:
        """Every string that ends a sequence."""
        return (self.stop_strings,) if isinstance(self.stop_strings, str) else tuple(self.stop_strings or ())

    @property
    def num_sequences(self) -> int:
        """How many sequences grow at the same time for one request."""
        return max(self.num_beams or 1, self.num_return_sequences or 1)


OPTIONS = options_of(GenerationParams)
DEFAULTS: dict[str, Any] = {name: one.default for name, one in OPTIONS.items() if one.default is not None}
SPECIAL_TOKENS = tuple(name for name, one in OPTIONS.items() if one.is_special_token)
# Neutral values of the options that have an effect in one search only.
_SAMPLING_ONLY: dict[str, Any] = {name: one.default for name, one in OPTIONS.items() if one.only == "sampling"}
_BEAMS_ONLY: dict[str, Any] = {name: one.default for name, one in OPTIONS.items() if one.only == "beams"}
# Options that mean the same: where the caller sets one, the checkpoint's value of the other is not used.
_SAME_MATTER = {
    "max_length": {"max_length", "max_new_tokens"},
    "max_new_tokens": {"max_length", "max_new_tokens"},
    "min_length": {"min_length", "min_new_tokens"},
    "min_new_tokens": {"min_length", "min_new_tokens"},
}


def as_ids(ids: TokenIds | None) -> tuple[int, ...]:
    """Return one id, several or none as a tuple."""
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def _is_known(name: str) -> bool:
    return name in OPTIONS or absent_option(name) is not None


def _suggestion(name: str, known: set[str]) -> str:
    from difflib import get_close_matches

    if (absent := absent_option(name)) is not None:
        return f", though transformers has it: {absent.reason}"
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        value = list(value.items())
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, list | tuple) else value


def _contradictions(params: GenerationParams) -> list[str]:
    """Return a line for each set of options that contradict each other."""
    problems = []
    if params.max_length is not None and params.max_new_tokens is not None:
        problems.append("max_length and max_new_tokens are both set; keep one")
    if params.min_length is not None and params.min_new_tokens is not None:
        problems.append("min_length and min_new_tokens are both set; keep one")
    for low, high in (("min_new_tokens", "max_new_tokens"), ("min_length", "max_length")):
        least, most = getattr(params, low), getattr(params, high)
        if least is not None and most is not None and least > most:
            problems.append(f"{low} = {least} is above {high} = {most}")
    beams, wanted = params.num_beams, params.num_return_sequences
    if wanted is not None and wanted > 1:
        if beams is not None and beams > 1 and wanted > beams:
            problems.append(f"num_return_sequences = {wanted} is above num_beams = {beams}")
        if beams == 1 and params.do_sample is False:
            problems.append(
                f"num_return_sequences = {wanted}, but greedy search has one answer; set num_beams or do_sample"
            )
    if params.do_sample is False:
        for name, neutral in _SAMPLING_ONLY.items():
            value = getattr(params, name)
            if value is not None and value != neutral:
                problems.append(f"{name} = {value!r} needs do_sample; set do_sample = true or leave {name} out")
    suppressed = set(params.suppress_tokens or ())
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = set(as_ids(getattr(params, name)))
        if forced and forced <= suppressed:
            problems.append(f"{name} = {sorted(forced)} is in suppress_tokens too")
    return problems
