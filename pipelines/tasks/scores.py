"""Convert logits to probabilities. It knows no labels and no tasks."""

import numpy as np

from batchloom.pipelines.tasks.base import Values


def softmax(logits: Values) -> Values:
    """Return probabilities that sum to 1 along the last axis."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def sigmoid(logits: Values) -> Values:
    """Return an independent probability for each logit."""
    with np.errstate(over="ignore"):  # exp of a large number is inf, and 1 / inf is the right result
        return np.reciprocal(1 + np.exp(-logits))
