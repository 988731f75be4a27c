"""From logits to probabilities. It knows no labels and no tasks."""

import numpy as np

from batchloom.pipelines.tasks.base import Values


def softmax(logits: Values) -> Values:
    """Probabilities that add up to 1 along the last axis."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def sigmoid(logits: Values) -> Values:
    """A probability for each logit by itself."""
    with np.errstate(over="ignore"):  # exp of a large number is inf, and 1 / inf the right answer
        return np.reciprocal(1 + np.exp(-logits))
