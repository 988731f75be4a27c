"""Decode steps as CUDA graphs, by their shapes. It knows no model: a step is a function of static inputs.

A graph records kernels with the addresses that they read and write, so replaying it is one call in place of a thousand.
What changes between two steps must lie in buffers that keep their addresses, and is loaded before.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchloom.models.generation.memory.gpu.shapes import StepShape
from batchloom.models.kernels import for_a_graph
from batchloom.models.transfers import Numbers, host_buffer

logger = logging.getLogger(__name__)

MAX_SHAPES = 64  # a large model's graph takes some megabytes; beyond this many the least recently used is dropped
EAGER_USES = (
    2  # of a shape before it is captured: a capture takes as long as a few steps, which a rare shape never saves
)


class StaticInputs:
    """Buffers of one shape for integers from the host, tokens and positions; also their graph and its logits.

    The integers are written where they are sent from, in pinned memory: nothing is padded, joined or copied before.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], num_rows: int, device: torch.device) -> None:
        sizes = [math.prod(shape) for shape in shapes]
        self._host_I, array_I = host_buffer(sum(sizes), device)
        self._numbers_I = torch.zeros(sum(sizes), dtype=torch.long, device=device)
        self._is_sent = torch.cuda.Event() if device.type == "cuda" else None
        views = np.split(array_I, np.cumsum(sizes)[:-1])
        self._host = [view.reshape(shape) for view, shape in zip(views, shapes, strict=True)]
        self.numbers = [view.view(shape) for view, shape in zip(self._numbers_I.split(sizes), shapes, strict=True)]
        self.prompts: object = None  # what the host's arrays were last written for
        self.input_ids_N = torch.zeros(num_rows, dtype=torch.long, device=device)
        self.position_N = torch.zeros_like(self.input_ids_N)
        self.num_uses = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits_NV = torch.empty(0)

    def host(self) -> list[Numbers]:
        """Return the arrays to write the next step's integers into, which have those of the last one."""
        if self._is_sent is not None:
            self._is_sent.synchronize()  # long past: a search waits for the device once a step
        return self._host

    def send(self) -> None:
        """Upload the integers in one copy."""
        self._numbers_I.copy_(self._host_I, non_blocking=True)
        if self._is_sent is not None:
            self._is_sent.record(torch.cuda.current_stream(self._numbers_I.device))

    def load_rows(self, input_ids_N: Tensor, position_N: Tensor) -> None:
        """Load the next step's tokens; padding rows keep their old contents, whose results nobody reads."""
        self.input_ids_N[: len(input_ids_N)] = input_ids_N
        self.position_N[: len(position_N)] = position_N


class Graphs:
    """The static inputs of all shapes so far. A shape is captured on its third use."""

    def __init__(self, device: torch.device, num_ranks: int) -> None:
        self._device = device
        self._captures = device.type == "cuda" and num_ranks == 1
        if device.type == "cuda" and num_ranks > 1:
            logger.info("decode steps run eagerly: the collectives of %d ranks are not captured", num_ranks)
        self._by_shape: dict[StepShape, StaticInputs] = {}
        self.num_steps = Counter[str]()  # eager, captured and replayed ones
        self._graph_memory: Any = None  # shared by all graphs: one's logits are read before the next one runs

    def shape(self, need: StepShape, capacities: Sequence[int]) -> StepShape:
        """Return the smallest known shape that serves, preferably one with a graph; otherwise a new one."""
        serving = [shape for shape in self._by_shape if shape.serves(need)]
        new = need.roomy(capacities)
        return min(serving, key=lambda shape: (self._by_shape[shape].graph is None, shape.total), default=new)

    def inputs(self, shape: StepShape, shapes: Sequence[tuple[int, ...]]) -> StaticInputs:
        """Return the buffers of a step's shape; `shapes`: of its integers."""
        inputs = self._by_shape.pop(shape, None) or StaticInputs(shapes, shape.num_rows, self._device)
        self._by_shape[shape] = inputs  # the most recently used one stands last
        if len(self._by_shape) > MAX_SHAPES:
            del self._by_shape[next(iter(self._by_shape))]
        return inputs

    def execute(self, inputs: StaticInputs, compute: Callable[[StaticInputs], Tensor]) -> Tensor:
        """Return what `compute` returns for loaded inputs, by a graph where there is one.

        `compute` may run twice in one step, so it must be idempotent.
        """
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
        """Drop all shapes and graphs: arrays that they read were reallocated."""
        self._by_shape.clear()
        self._graph_memory = None

    def _capture(self, compute: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        with torch.cuda.device(self._device), for_a_graph():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                compute()  # warm-up: libraries choose their kernels and allocate workspaces, Triton loads its own
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # thread_local: another thread may go on using the device meanwhile.
            with torch.cuda.graph(graph, pool=self._graph_memory, stream=side, capture_error_mode="thread_local"):
                logits_NV = compute()
        self._graph_memory = graph.pool()
        return graph, logits_NV
