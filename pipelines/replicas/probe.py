"""A probe asks a model fixed questions, to compare the answers of several ranks with those of one. It knows no Ray.

The answers of one rank are computed on a CPU in float32 by a model whose weights are streamed
(models/checkpoints/streamed.py), in the memory of one weight: no device has to hold the whole model, and the code that
divides weights is not used.
"""

import inspect
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchloom.pipelines.errors import JobError

if TYPE_CHECKING:
    from torch import Tensor

    from batchloom.models import PinnedModel
    from batchloom.models.families.base import LoadedModel

Answers = list[list[float]]
"""By output of the model's forward (logits; start and end): values from all over its rows, positions and columns."""

NUM_VALUES = 1024
NUM_ROWS, NUM_TOKENS = 2, 12

# How far answers may be off, as a share of their size (root mean square). Random models of 12 layers, on 1 and 2 ranks
# alike, were off by 4e-7, 0.0015 and 0.012 with weights of 0.02, and by 4e-5, 0.06 and 0.18 with 0.3, ten times trained
# ones. Wrong divisions were off by 0.1 to 0.4; one matrix of one layer with wrong columns by 0.009 and more.
TOLERANCES = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}


def reference(model: "PinnedModel", architecture: str | None, num_threads: int) -> Answers:
    """Compute the answers of one rank, reading the checkpoint once. Raises: ModelError where it cannot be read."""
    import torch

    from batchloom import models

    torch.set_num_threads(num_threads)
    return ask(models.stream_model(model, architecture))


def ask(model: "LoadedModel") -> Answers:
    """Compute a loaded model's answers."""
    import torch

    input_ids_BT = torch.tensor(_questions(model))
    arguments = {"input_ids": input_ids_BT.to(model.device)}
    if model.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters:
        arguments["decoder_input_ids"] = arguments["input_ids"].flip(1)
    outputs = model(**arguments)
    return [_spread(output) for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def check(found: Answers, expected: Answers, num_ranks: int, dtype: str) -> None:
    """Compare the answers of several ranks, in `dtype`, with those of one. Raises: JobError where they differ."""
    error = max(_distance(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    tolerance = TOLERANCES[dtype]
    if not error <= tolerance:  # also refuses NaN
        raise JobError(
            f"engine.tensor_parallel: {num_ranks} ranks do not answer the start-up probe as one rank does: in {dtype} "
            f"they are off by {error:.2g} of the answers' size, where rounding explains {tolerance:g}. No unit was "
            "computed. Use fewer ranks or another dtype, and report this; engine.probe: false starts without asking."
        )


def _questions(model: "LoadedModel") -> list[list[int]]:
    """Return rows of token ids spread over the vocabulary, so over every rank's share; each ends as texts do."""
    config, num_tokens = model.config, min(NUM_TOKENS, model.max_positions or NUM_TOKENS)
    special = {config.bos_token_id, config.eos_token_id, config.pad_token_id}
    plain = [token for token in range(config.vocab_size) if token not in special]
    ids = [plain[place] for place in _evenly(len(plain), NUM_ROWS * num_tokens)]
    rows = [ids[row * num_tokens : (row + 1) * num_tokens] for row in range(NUM_ROWS)]
    return [row if config.eos_token_id is None else [*row[:-1], config.eos_token_id] for row in rows]


def _spread(output: "Tensor") -> list[float]:
    values = output.float().flatten().cpu()
    spread: list[float] = values[_evenly(len(values), min(NUM_VALUES, len(values)))].tolist()
    return spread


def _evenly(length: int, count: int) -> list[int]:
    """Return `count` evenly spaced indices, from the first to the last of `length`."""
    return [round(number * (length - 1) / max(1, count - 1)) for number in range(count)]


def _distance(found: Sequence[float], expected: Sequence[float]) -> float:
    return math.dist(found, expected) / max(math.hypot(*expected), sys.float_info.min)
