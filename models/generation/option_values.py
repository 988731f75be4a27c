"""The kinds of generation options: which values each can have. It knows no model, and not which options contradict.

`option(...)` declares a field of GenerationParams. All that is known of an option stands in its field's metadata: the
tables that params.py and models/checkpoints/info.py use are derived from there.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Kind:
    """Values that a model can use; lists come as tuples. `wanted` says so in an error."""

    accepts: Callable[[Any], bool]
    wanted: str


@dataclass(frozen=True)
class Option:
    """What is known of one option."""

    kind: Kind
    default: Any  # transformers' value where neither the caller nor the checkpoint sets one; None: stays unset
    only: Literal["sampling", "beams"] | None  # the search in which it has an effect; None: every search
    names_tokens: bool  # whether its tokens are looked up, so that they must be in the vocabulary
    is_special_token: bool  # whether config.json supplies it beside a generation_config.json without it


def option(
    kind: Kind,
    default: Any = None,
    only: Literal["sampling", "beams"] | None = None,
    names_tokens: bool = False,
    is_special_token: bool = False,
) -> Any:
    """Declare an option as a dataclass field that is unset (None) by default."""
    described = Option(kind, default, only, names_tokens, is_special_token)
    return field(default=None, metadata={"option": described})


def options_of(params: Any) -> dict[str, Option]:
    """Return the options that a dataclass declares, by name."""
    return {each.name: _option(each) for each in fields(params) if "option" in each.metadata}


def problems_of(params: Any) -> list[str]:
    """Return a line for each option that is set to a value which no model could use."""
    problems = []
    for name, one in options_of(params).items():
        value = getattr(params, name)
        if value is not None and not one.kind.accepts(value):
            problems.append(f"{name} = {value!r}; it must be {one.kind.wanted}")
    return problems


def tokens_of(params: Any) -> Iterator[tuple[str, int]]:
    """Yield every token that the options name and a model would look up, with the option's name."""
    for name, one in options_of(params).items():
        if one.names_tokens:
            for word in _listed(getattr(params, name)):
                named = word[0] if one.kind is BIASES else word
                yield from ((name, token) for token in _listed(named))


def _option(declared: Field[Any]) -> Option:
    described: Option = declared.metadata["option"]
    return described


def _listed(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def _is_natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_is_natural, value))


def _are_words(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(word and _are_tokens(word) for word in value)


def _are_biases(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 and _are_words(pair[:1]) and _is_finite(pair[1]) for pair in value
    )


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _are_strings(value: Any) -> bool:
    return bool(value) and all(isinstance(stop, str) and stop for stop in _listed(value))


def _is_decay(value: Any) -> bool:
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    start, factor = value
    return _is_natural(start) and _is_number(factor) and factor > 0


COUNT_FROM_ONE = Kind(lambda value: _is_natural(value) and value >= 1, "a whole number of at least 1")
COUNT = Kind(_is_natural, "a whole number of at least 0")
ABOVE_ZERO = Kind(lambda value: _is_number(value) and value > 0, "a number above 0")
SHARE = Kind(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
SHARE_ABOVE_ZERO = Kind(lambda value: _is_number(value) and 0 < value <= 1, "a number above 0, at most 1")
NUMBER = Kind(lambda value: _is_number(value) and value == value, "a number")  # not NaN
SWITCH = Kind(lambda value: isinstance(value, bool), "true or false")
EARLY_STOPPING = Kind(lambda value: isinstance(value, bool) or value == "never", "true, false or 'never'")
TOKEN = Kind(_is_natural, "a token id")
TOKENS = Kind(_are_tokens, "a list of token ids")
TOKEN_OR_TOKENS = Kind(lambda value: _is_natural(value) or _are_tokens(value), "a token id or a list of them")
WORDS = Kind(_are_words, "a list of lists of token ids, none of them empty")
BIASES = Kind(_are_biases, "a list of pairs, each a list of token ids and a finite number")
STRINGS = Kind(_are_strings, "a string or a list of them, none empty")
DECAY = Kind(_is_decay, "a whole number of new tokens and a factor above 0")
ANY = Kind(lambda _: True, "anything")
