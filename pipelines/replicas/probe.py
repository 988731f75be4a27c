"""A probe asks a model fixed questions, to compare the answers of several ranks with those of one, and those of a model
in int8 with those in float32. It knows no Ray.

The answers to compare with are computed on a CPU in float32 by one rank whose weights are streamed
(models/checkpoints/streamed.py), in the memory of one weight: no device has to hold the whole model, and the code that
divides and quantizes weights is not used.
"""

import inspect
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchloom.pipelines.counts import EQUAL_CHOICES, LOGIT_ERROR
from batchloom.pipelines.errors import JobError

if TYPE_CHECKING:
    from torch import Tensor

    from batchloom.models import PinnedModel
    from batchloom.models.families.base import LoadedModel


@dataclass(frozen=True)
class Answers:
    """A model's, by output of its forward (logits; start and end)."""

    values: tuple[tuple[float, ...], ...]
    """From all over its rows, positions and columns."""
    choices: tuple[tuple[int, ...], ...]
    """The best column of each row and position: the greedy token, the label; of answers the position. None of models
    without a head."""


@dataclass(frozen=True)
class Agreement:
    """What a model in int8 has in common with itself in float32."""

    logit_error: float
    """How far its values are off, as a share of their size (root mean square)."""
    equal_choices: float
    """The share of choices that are the same; 1 where there are none."""

    def measures(self) -> dict[str, float]:
        """Return what units carry to the driver."""
        return {LOGIT_ERROR: self.logit_error, EQUAL_CHOICES: self.equal_choices}


@dataclass(frozen=True)
class Questions:
    """How much is asked."""

    num_rows: int
    num_tokens: int


NUM_VALUES = 1024
FOR_RANKS = Questions(2, 12)
FOR_INT8 = Questions(16, 24)  # choices are counted: of 384 tokens

# How far answers may be off, as a share of their size (root mean square). Random models of 12 layers, on 1 and 2 ranks
# alike, were off by 4e-7, 0.0015 and 0.012 with weights of 0.02, and by 4e-5, 0.06 and 0.18 with 0.3, ten times trained
# ones. Wrong divisions were off by 0.1 to 0.4; one matrix of one layer with wrong columns by 0.009 and more.
TOLERANCES = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
# How far int8 may be from float32. Trained small models were off by 0.028 (97 % of tokens the same) and 0.04, where
# bfloat16 was off by 0.008 (98 %) and 0.007; random ones with weights of 0.3 by 0.02 to 0.06 (92 to 100 %).
# With 31 steps in place of 127 the first was off by 0.075 (92 %), with 15 by 0.14 (86 %), with 7 by 0.28 (69 %).
INT8_BOUNDS = Agreement(logit_error=0.1, equal_choices=0.8)
ENOUGH_CHOICES = 100  # a share of fewer, of labels or of an answer's positions, is decided by some that are nearly tied


def questions_for(dtype: str) -> Questions:
    return FOR_INT8 if dtype == "int8" else FOR_RANKS


def reference(
    model: "PinnedModel", architecture: str | None, num_threads: int, questions: Questions = FOR_RANKS
) -> Answers:
    """Compute the answers of one rank, reading the checkpoint once. Raises: ModelError where it cannot be read."""
    import torch

    from batchloom import models

    torch.set_num_threads(num_threads)
    return ask(models.stream_model(model, architecture), questions)


def ask(model: "LoadedModel", questions: Questions = FOR_RANKS) -> Answers:
    """Compute a loaded model's answers."""
    import torch

    input_ids_BT = torch.tensor(_rows(model, questions))
    arguments = {"input_ids": input_ids_BT.to(model.device)}
    if model.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters:
        arguments["decoder_input_ids"] = arguments["input_ids"].flip(1)
    outputs = model(**arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    has_head = "For" in type(model).__name__
    choices = (tuple(output.float().argmax(-1).flatten().tolist()) for output in outputs if has_head)
    return Answers(tuple(_spread(output) for output in outputs), tuple(choices))


def check_int8(found: Answers, expected: Answers) -> Agreement:
    """Compare the answers of a model in int8 with those in float32. Raises: JobError where they have too little in
    common."""
    pairs = [
        pair
        for mine, theirs in zip(found.choices, expected.choices, strict=True)
        for pair in zip(mine, theirs, strict=True)
    ]
    equal = sum(mine == theirs for mine, theirs in pairs) / len(pairs) if pairs else 1.0
    agreement, bounds = Agreement(_error(found, expected), equal), INT8_BOUNDS
    is_counted = len(pairs) >= ENOUGH_CHOICES
    # also refuses NaN
    if not (agreement.logit_error <= bounds.logit_error and (equal >= bounds.equal_choices or not is_counted)):
        raise JobError(
            "engine.dtype: int8 does not answer the start-up probe as float32 does: values are off "
            f"by {agreement.logit_error:.2g} of their size ({bounds.logit_error:g} at most), and {equal:.0%} of its "
            f"tokens or labels are the same ({bounds.equal_choices:.0%} at least). No unit was computed. Use "
            "engine.dtype: bfloat16 or float32 for this checkpoint; engine.probe: false starts without asking."
        )
    return agreement


def check(found: Answers, expected: Answers, num_ranks: int, dtype: str) -> None:
    """Compare the answers of several ranks, in `dtype`, with those of one. Raises: JobError where they differ."""
    error, tolerance = _error(found, expected), TOLERANCES[dtype]
    if not error <= tolerance:  # also refuses NaN
        raise JobError(
            f"engine.tensor_parallel: {num_ranks} ranks do not answer the start-up probe as one rank does: in {dtype} "
            f"they are off by {error:.2g} of the answers' size, where rounding explains {tolerance:g}. No unit was "
            "computed. Use fewer ranks or another dtype, and report this; engine.probe: false starts without asking."
        )


def _rows(model: "LoadedModel", questions: Questions) -> list[list[int]]:
    """Return rows of token ids spread over the vocabulary, so over every rank's share; each ends as texts do."""
    config, num_tokens = model.config, min(questions.num_tokens, model.max_positions or questions.num_tokens)
    special = {config.bos_token_id, config.eos_token_id, config.pad_token_id}
    plain = [token for token in range(config.vocab_size) if token not in special]
    ids = [plain[place] for place in _evenly(len(plain), questions.num_rows * num_tokens)]
    rows = [ids[row * num_tokens : (row + 1) * num_tokens] for row in range(questions.num_rows)]
    return [row if config.eos_token_id is None else [*row[:-1], config.eos_token_id] for row in rows]


def _spread(output: "Tensor") -> tuple[float, ...]:
    values = output.float().flatten().cpu()
    return tuple(values[_evenly(len(values), min(NUM_VALUES, len(values)))].tolist())


def _evenly(length: int, count: int) -> list[int]:
    """Return `count` evenly spaced indices, from the first to the last of `length`."""
    return [round(number * (length - 1) / max(1, count - 1)) for number in range(count)]


def _error(found: Answers, expected: Answers) -> float:
    """Return the largest distance between two outputs, as a share of their size."""
    return max(_distance(mine, theirs) for mine, theirs in zip(found.values, expected.values, strict=True))


def _distance(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return how far values are off; banned tokens have -infinity in both, which is no distance."""
    pairs = [pair for pair in zip(found, expected, strict=True) if pair[0] != pair[1] or math.isfinite(pair[0])]
    if not pairs:
        return 0.0
    mine, theirs = zip(*pairs, strict=True)
    return math.dist(mine, theirs) / max(math.hypot(*theirs), sys.float_info.min)
