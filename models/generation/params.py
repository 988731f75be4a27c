"""What a caller asks of generation, under transformers' names. It knows no model and no tensor.

A field left at None is unset: the checkpoint's own value stands in for it, and after that transformers' default.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from batchloom.models.errors import ParamsError
from batchloom.models.generation.option_values import problems_of, tokens_of

TokenIds = int | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """Options of one request. Lengths count tokens; `max_length` and `min_length` count the decoder's prompt too."""

    # How long. max_new_tokens wins over max_length, min_new_tokens over min_length.
    max_length: int | None = None  # a decoder-only model's prompt counts, and the start token of an encoder-decoder
    max_new_tokens: int | None = None
    min_length: int | None = None  # end tokens are impossible before
    min_new_tokens: int | None = None
    stop_strings: str | Sequence[str] | None = None  # a sequence ends with the token that completes one

    # How to search.
    num_beams: int | None = None
    num_return_sequences: int | None = None
    early_stopping: bool | Literal["never"] | None = None  # True: stop when num_beams sequences are finished
    length_penalty: float | None = None  # a finished beam's score is divided by its new tokens to this power
    do_sample: bool | None = None

    # What sampling draws from, in the order of application.
    temperature: float | None = None
    top_k: int | None = None  # 0: all
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    renormalize_logits: bool | None = None

    # What may not be said, or must.
    encoder_repetition_penalty: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: TokenIds | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None  # (first new token, factor)
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None

    # Special tokens.
    bos_token_id: int | None = None
    eos_token_id: TokenIds | None = None  # any of several ends a sequence
    pad_token_id: int | None = None
    decoder_start_token_id: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):  # lists become tuples: params are the key of a cohort, so they must be hashable
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))
        # Values first: what cannot be used cannot be compared.
        if problems := problems_of(self) or _contradictions(self):
            raise ParamsError("; ".join(problems))

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> "GenerationParams":
        """The params of a job file's mapping. Raises ParamsError naming every unknown option."""
        known = {field.name for field in fields(cls)}
        unknown = [name for name in options if name not in known and not _is_neutral(name, options[name])]
        if unknown:
            raise ParamsError(
                "; ".join(
                    f"generation option {name} = {options[name]!r} is not one we have" + _suggestion(name, known)
                    for name in unknown
                )
            )
        return cls(**{name: value for name, value in options.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """The options that are set, as JSON and YAML hold them."""
        return {name: _thawed(value) for name, value in asdict(self).items() if value is not None}

    def resolve(self, defaults: Mapping[str, Any]) -> "GenerationParams":
        """These params with the checkpoint's `defaults` and then transformers' own where they are unset.

        What is resolved stays the same when resolved again. A length that the caller set in one spelling is not
        overruled by the checkpoint's value in the other. Raises ParamsError if what comes out contradicts itself.
        """
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        owned = {name for name, value in chosen.items() if value is not None}
        for name, value in defaults.items():
            if value is None or owned & _SAME_MATTER.get(name, {name}):
                continue
            if name in chosen:
                chosen[name] = value
            elif not _is_neutral(name, value):
                raise ParamsError(
                    f"the checkpoint's generation defaults ask for {name} = {value!r}, which is not an option we have. "
                    "Remove it from generation_config.json to generate without it"
                )
        for winner, loser in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
            if chosen[winner] is not None:
                chosen[loser] = None
        if chosen["max_length"] is None and chosen["max_new_tokens"] is None:
            chosen["max_new_tokens"] = 20
        for low, high in (("min_new_tokens", "max_new_tokens"), ("min_length", "max_length")):
            # A checkpoint's least length above the caller's greatest means: no end token before the last.
            if low not in owned and chosen[low] is not None and chosen[high] is not None:
                chosen[low] = min(chosen[low], chosen[high])
        chosen = {name: DEFAULTS.get(name) if value is None else value for name, value in chosen.items()}
        if not chosen["do_sample"]:
            # The checkpoint's have no meaning then; a caller's are a contradiction, and stay to be refused as one.
            chosen |= {name: value for name, value in _SAMPLING_ONLY.items() if name not in owned}
        if chosen["num_beams"] == 1:
            chosen |= _BEAMS_ONLY
        return replace(GenerationParams(), **chosen)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises ParamsError for every option that names a token which a vocabulary of this size does not have."""
        if self._highest_token < vocab_size:
            return
        unknown = [f"{name} names token {token}" for name, token in tokens_of(self) if token >= vocab_size]
        raise ParamsError(f"{'; '.join(unknown)}; the model's vocabulary is 0 to {vocab_size - 1}")

    @cached_property
    def _highest_token(self) -> int:
        return max((token for _, token in tokens_of(self)), default=-1)

    @cached_property
    def search(self) -> "GenerationParams":
        """These params without lengths: requests that differ in nothing else are searched together."""
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


# Values that do nothing, which transformers puts in where nobody says otherwise.
_SAMPLING_ONLY: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
_BEAMS_ONLY: dict[str, Any] = {"early_stopping": False, "length_penalty": 1.0}
DEFAULTS: dict[str, Any] = {
    **_SAMPLING_ONLY,
    **_BEAMS_ONLY,
    "num_beams": 1,
    "num_return_sequences": 1,
    "do_sample": False,
    "renormalize_logits": False,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
}
# A caller who set one of these has said all there is to say about the other.
_SAME_MATTER = {
    "max_length": {"max_length", "max_new_tokens"},
    "max_new_tokens": {"max_length", "max_new_tokens"},
    "min_length": {"min_length", "min_new_tokens"},
    "min_new_tokens": {"min_length", "min_new_tokens"},
}
# Options of transformers that we do not have, with the values at which they change no token.
_ABSENT: dict[str, tuple[Any, ...]] = {
    "constraints": (None,),
    "diversity_penalty": (None, 0.0),
    "dola_layers": (None,),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1, 1.0),
    "max_time": (None,),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "prompt_lookup_num_tokens": (None,),
    "remove_invalid_values": (None, False),
    "sequence_bias": (None,),
    "token_healing": (None, False),
    "top_h": (None,),
    "watermarking_config": (None,),
}
# Options that never change a token of ours: how transformers stores, caches, compiles and reports.
_WITHOUT_EFFECT = {
    "_from_model_config",
    "cache_implementation",
    "max_cache_len",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "return_dict_in_generate",
    "transformers_version",
    "use_cache",
}


def as_ids(ids: TokenIds | None) -> tuple[int, ...]:
    """One id, several or none, as a tuple."""
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def _is_neutral(name: str, value: Any) -> bool:
    return name in _WITHOUT_EFFECT or (name in _ABSENT and value in _ABSENT[name])


def _suggestion(name: str, known: set[str]) -> str:
    from difflib import get_close_matches

    if name in _ABSENT:
        return ", though transformers has it"
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, list | tuple) else value


def _contradictions(params: GenerationParams) -> list[str]:
    """Options that cannot both be meant."""
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
