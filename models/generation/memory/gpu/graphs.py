"""Steps as CUDA graphs, by the shapes of what they read. It knows no model: a step is a function of static inputs.

A graph is a recording of kernels with the addresses that they read and write, so replaying it is one call in place of a
thousand. What changes between two steps must lie in buffers that stay, and is loaded before.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchloom.models.generation.crossings import Numbers, upload
from batchloom.models.generation.memory.gpu.shapes import StepShape

logger = logging.getLogger(__name__)

MAX_SHAPES = 64  # a graph of a large model takes some megabytes; the one not used for longest goes
EAGER_USES = 2  # of a shape, before it is captured: that takes as long as a few steps, which a rare shape never saves


class StaticInputs:
    """Buffers of one shape, for whole numbers from the host, tokens and positions; a graph of them and its logits."""

    def __init__(self, arrays: Sequence[Numbers], num_rows: int, device: torch.device) -> None:
        self._numbers_I = torch.zeros(sum(array.size for array in arrays), dtype=torch.long, device=device)
        parts = self._numbers_I.split([array.size for array in arrays])
        self.numbers = [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
        self.input_ids_N = torch.zeros(num_rows, dtype=torch.long, device=device)
        self.position_N = torch.zeros_like(self.input_ids_N)
        self.num_uses = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits_NV = torch.empty(0)

    def load(self, arrays: Sequence[Numbers]) -> None:
        """The next step's numbers, in one copy."""
        self._numbers_I.copy_(upload([np.concatenate([array.ravel() for array in arrays])], self._numbers_I.device)[0])

    def load_rows(self, input_ids_N: Tensor, position_N: Tensor) -> None:
        """The next step's tokens; rows beyond them keep what they had, which nobody reads."""
        self.input_ids_N[: len(input_ids_N)] = input_ids_N
        self.position_N[: len(position_N)] = position_N


class Graphs:
    """Static inputs of all shapes that came so far. A shape that came a few times is captured."""

    def __init__(self, device: torch.device, num_ranks: int) -> None:
        self._device = device
        self._captures = device.type == "cuda" and num_ranks == 1
        if device.type == "cuda" and num_ranks > 1:
            logger.info("decode steps run eagerly: %d ranks' messages are not captured", num_ranks)
        self._by_shape: dict[StepShape, StaticInputs] = {}
        self.num_steps = Counter[str]()  # eager, captured and replayed ones
        self._pool: Any = None  # one for all: a graph's logits are read before the next one runs

    def shape(self, need: StepShape, capacities: Sequence[int]) -> StepShape:
        """The smallest shape that came before and serves, one with a graph if there is one; or else a new one."""
        serving = [shape for shape in self._by_shape if shape.serves(need)]
        new = need.roomy(capacities)
        return min(serving, key=lambda shape: (self._by_shape[shape].graph is None, shape.total), default=new)

    def inputs(self, shape: StepShape, arrays: Sequence[Numbers]) -> StaticInputs:
        """The buffers of a shape, these numbers in them."""
        inputs = self._by_shape.pop(shape, None) or StaticInputs(arrays, shape.num_rows, self._device)
        self._by_shape[shape] = inputs  # the last one used stands last
        if len(self._by_shape) > MAX_SHAPES:
            del self._by_shape[next(iter(self._by_shape))]
        inputs.load(arrays)
        return inputs

    def run(self, inputs: StaticInputs, compute: Callable[[StaticInputs], Tensor]) -> Tensor:
        """What `compute` gives for what was loaded; it may run twice, and must do twice what it does once."""
        inputs.num_uses += 1
        if inputs.graph is None and self._captures and inputs.num_uses > EAGER_USES:
            try:
                inputs.graph, inputs.logits_NV = self._capture(lambda: compute(inputs))
                self.num_steps["captured"] += 1
            except RuntimeError as error:
                self._captures = False
                logger.warning("decode steps run eagerly from now on, since one could not be captured: %s", error)
        self.num_steps["eager" if inputs.graph is None else "replayed"] += 1
        if inputs.graph is None:
            return compute(inputs)
        inputs.graph.replay()
        return inputs.logits_NV

    def clear(self) -> None:
        """Forgets all shapes: something that graphs read has moved."""
        self._by_shape.clear()
        self._pool = None

    def _capture(self, compute: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                compute()  # libraries choose their kernels and take their workspaces now
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Another thread may go on using the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                logits_NV = compute()
        self._pool = graph.pool()
        return graph, logits_NV
