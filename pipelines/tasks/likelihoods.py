"""Log-likelihoods of tokens on their way from a model to columns. It knows no task.

A checkpoint's bias may ban tokens, by a logit of -infinity. One that is scored all the same has probability 0, which is
an answer, and no column holds infinity: it is null on its way, and NaN as a number.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchloom.pipelines.tasks.base import Values

if TYPE_CHECKING:
    from batchloom.models.single_pass.scoring import TokenScores


def values_of(scores: Iterable[Iterable["TokenScores"]]) -> pa.ListArray:
    """Return the log-probabilities of each request's sequences, one after the other, null where one is -infinity."""
    found = [np.concatenate([own.log_probs.numpy() for own in request]) for request in scores]
    offsets = pa.array(np.cumsum([0, *map(len, found)]), pa.int32())
    flat = np.concatenate([np.zeros(0, np.float32), *found])
    return pa.ListArray.from_arrays(offsets, pa.array(flat, pa.float32(), mask=np.isneginf(flat)))


def total(tokens: Values) -> float:
    """Return the log-likelihood of tokens together: -infinity where one has probability 0."""
    return -math.inf if np.isnan(tokens).any() else float(tokens.astype(np.float64).sum())


def exp(exponent: float) -> float:
    """Return e to a power, infinity where no float holds it."""
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf


def why_not_finite(column: str) -> str:
    """Return why the log-likelihood or the perplexity of a row is infinite, though the model's values are not NaN."""
    if column == "perplexity":
        return "Perplexity is more than a float holds: so unlikely is the text to this model."
    return (
        "A token of it has probability 0: its logit is -infinity, as where the checkpoint's final_logits_bias bans it. "
        "Leave the token out of the text, or mend the checkpoint."
    )
