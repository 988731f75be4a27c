"""Which values each generation option can have. It knows no model, and not what contradicts what."""

from collections.abc import Callable, Iterator
from typing import Any

# Options by what they hold. The padding token is in none: no answer depends on it.
COUNTS_FROM_ONE = ("max_length", "max_new_tokens", "num_beams", "num_return_sequences")
COUNTS = ("min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size")
ABOVE_ZERO = ("temperature", "repetition_penalty", "encoder_repetition_penalty")
SHARES = ("top_p", "min_p", "epsilon_cutoff", "eta_cutoff")
SWITCHES = ("do_sample", "renormalize_logits")
TOKEN = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id")
TOKENS = ("begin_suppress_tokens", "suppress_tokens")
TOKEN_OR_TOKENS = ("eos_token_id", "forced_eos_token_id")


def problems_of(options: Any) -> list[str]:
    """A line for each option, lists as tuples, whose value no model could use; None is no value."""
    problems: list[str] = []

    def check(names: tuple[str, ...], is_good: Callable[[Any], bool], wanted: str) -> None:
        for name in names:
            value = getattr(options, name)
            if value is not None and not is_good(value):
                problems.append(f"{name} = {value!r}; it must be {wanted}")

    check(COUNTS_FROM_ONE, lambda value: _is_natural(value) and value >= 1, "a whole number of at least 1")
    check(COUNTS, _is_natural, "a whole number of at least 0")
    check(ABOVE_ZERO, lambda value: _is_number(value) and value > 0, "a number above 0")
    check(SHARES, lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
    check(("typical_p",), lambda value: _is_number(value) and 0 < value <= 1, "a number above 0, at most 1")
    check(("length_penalty",), lambda value: _is_number(value) and value == value, "a number")
    check(SWITCHES, lambda value: isinstance(value, bool), "true or false")
    check(("early_stopping",), lambda value: isinstance(value, bool) or value == "never", "true, false or 'never'")
    check(TOKEN, _is_natural, "a token id")
    check(TOKENS, _are_tokens, "a list of token ids")
    check(TOKEN_OR_TOKENS, lambda value: _is_natural(value) or _are_tokens(value), "a token id or a list of them")
    check(
        ("bad_words_ids",),
        lambda value: isinstance(value, tuple) and bool(value) and all(word and _are_tokens(word) for word in value),
        "a list of lists of token ids, none of them empty",
    )
    check(
        ("stop_strings",),
        lambda value: bool(value) and all(isinstance(stop, str) and stop for stop in _listed(value)),
        "a string or a list of them, none empty",
    )
    check(("exponential_decay_length_penalty",), _is_decay, "a whole number of new tokens and a factor above 0")
    return problems


def tokens_of(options: Any) -> Iterator[tuple[str, int]]:
    """Every token that the options name, by option, of those that a model would look up."""
    for name in ("decoder_start_token_id", "forced_bos_token_id", *TOKENS, *TOKEN_OR_TOKENS, "bad_words_ids"):
        for one in _listed(getattr(options, name)):
            yield from ((name, token) for token in _listed(one))


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


def _is_decay(value: Any) -> bool:
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    start, factor = value
    return _is_natural(start) and _is_number(factor) and factor > 0
