"""Find the best span of a window from start and end logits. It knows no text and no model."""

from dataclasses import dataclass

import numpy as np

from batchloom.pipelines.tasks.base import Values
from batchloom.pipelines.tasks.scores import softmax


@dataclass(frozen=True)
class Span:
    """Tokens or characters [start, stop)."""

    score: float
    start: int
    stop: int


def best_span(
    start_T: Values, end_T: Values, context: range, max_length: int, with_nothing: bool
) -> tuple[Span, float]:
    """Return the most probable span within the context, and the probability of no answer, the first token's.

    Probabilities are over the context's tokens, and with `with_nothing` the first token: question and special tokens
    cannot be answers.
    """
    asked = np.array([*((0,) if with_nothing and 0 not in context else ()), *context])
    start_P, end_P = softmax(start_T[asked]), softmax(end_T[asked])
    nothing = float(start_P[0] * end_P[0]) if with_nothing else 0.0
    if with_nothing:
        start_P[0] = end_P[0] = 0.0
    scores_PP = np.tril(np.triu(np.outer(start_P, end_P)), max_length - 1)
    first, last = divmod(int(scores_PP.argmax()), len(asked))
    return Span(float(scores_PP[first, last]), int(asked[first]), int(asked[last]) + 1), nothing
