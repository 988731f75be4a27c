"""Find the best spans of a window from start and end logits. It knows no text and no model."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from batchloom.pipelines.tasks.base import Ints, Values
from batchloom.pipelines.tasks.scores import softmax


@dataclass(frozen=True)
class Span:
    """Tokens or characters [start, stop)."""

    score: float
    start: int
    stop: int


def spans_of(
    start_T: Values, end_T: Values, context: range, max_length: int, with_nothing: bool
) -> tuple[Iterator[Span], float]:
    """Return the spans within the context, the most probable first, and the first token's probability: no answer.

    Probabilities are over the context's tokens, and with `with_nothing` the first token: question and special tokens
    cannot be answers.
    """
    asked = np.array([*((0,) if with_nothing and 0 not in context else ()), *context])
    start_P, end_P = softmax(start_T[asked]), softmax(end_T[asked])
    nothing = float(start_P[0] * end_P[0]) if with_nothing else 0.0
    if with_nothing:
        start_P[0] = end_P[0] = 0.0
    scores_PP = np.tril(np.triu(np.outer(start_P, end_P)), max_length - 1)
    return _in_order(scores_PP, asked), nothing


def _in_order(scores_PP: Values, asked: Ints) -> Iterator[Span]:
    """Yield spans by their scores. Most callers take one: only more are sorted."""

    def span(place: int) -> Span:
        first, last = divmod(place, len(asked))
        return Span(float(scores_PP[first, last]), int(asked[first]), int(asked[last]) + 1)

    best = int(scores_PP.argmax())
    yield span(best)
    places = np.flatnonzero(scores_PP)
    for place in places[np.argsort(-scores_PP.flat[places], kind="stable")].tolist():
        if place != best:
            yield span(place)
