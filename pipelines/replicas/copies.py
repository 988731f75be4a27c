"""Answers that copy their prompt. They are told here, in the replica, as the prompt is at hand nowhere else."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchloom.models import GenerationParams

LEAST_COPIED = 8  # tokens of a prompt that an answer may begin with and go on from, and is a copy; "Hello" is none


def is_copy(
    prompt: Sequence[int], answer: Sequence[int], marks: frozenset[int], answer_prefix: Sequence[int] = ()
) -> bool:
    """Return whether an answer says what its prompt says, or begins with the whole of it, if that is not short.

    `marks`: special tokens, which do not count at the ends. `answer_prefix`: what the answer was made to begin with. It
    is no copy by that alone, but what was generated may make it one, or be one itself.
    """
    if answer_prefix and not is_copy(prompt, answer_prefix, marks):
        return is_copy(prompt, answer, marks) or is_copy(prompt, [*answer_prefix, *answer], marks)
    asked, said = _without_marks(prompt, marks), _without_marks(answer, marks)
    return bool(asked) and said[: len(asked)] == asked and (len(said) == len(asked) or len(asked) >= LEAST_COPIED)


def _without_marks(token_ids: Sequence[int], marks: frozenset[int]) -> list[int]:
    first, stop = 0, len(token_ids)
    while first < stop and token_ids[first] in marks:
        first += 1
    while stop > first and token_ids[stop - 1] in marks:
        stop -= 1
    return list(token_ids[first:stop])


def marks_of(params: "GenerationParams") -> frozenset[int]:
    """Return the special tokens that begin, end and pad texts."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")
    values = (getattr(params, name) for name in names)
    ids = (value if isinstance(value, Sequence) else (value,) for value in values if value is not None)
    return frozenset(token for own in ids for token in own)
