"""The decoder for GPUs: keys and values in blocks, and steps of few different shapes, each a graph. It knows no search.

The host says once a step, in arrays, which rows read which blocks; all the rest is on the device and has its address.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchloom.models.footprint import BLOCK_PADDING
from batchloom.models.generation.memory.gpu.attention import BlockAttention, BlockReader, Reading, Writing, enter
from batchloom.models.generation.memory.gpu.blocks import BLOCK, PADDING, BlockStore
from batchloom.models.generation.memory.gpu.graphs import Graphs, StaticInputs
from batchloom.models.generation.memory.gpu.shapes import StepShape
from batchloom.models.generation.memory.gpu.tables import Prompt, Text, joined, prompts_of, reading_arrays
from batchloom.models.generation.memory.gpu.units import BlockUnits
from batchloom.models.generation.memory.prompts import Prefilled, Prompts
from batchloom.models.generation.requests import Request

Layer = tuple[Tensor, Tensor]  # keys and values


class BlockDecoder:
    """A model, and steps over any number of cohorts."""

    padding = BLOCK_PADDING

    def __init__(self, model: Any) -> None:
        self._model = model
        like = torch.empty(0, dtype=model.dtype, device=model.device)
        self._stores = [
            BlockStore(model.num_layers, model.num_heads, model.head_dim, like)
            for _ in range(2 if model.is_encoder_decoder else 1)
        ]
        self._versions: list[int] = []
        self._graphs = Graphs(model.device, model.group.size)
        self._read: tuple[list[Prompt], Text] | None = None  # the last step's prompts; they seldom change

    @property
    def _own(self) -> BlockStore:
        """Where new tokens are."""
        return self._stores[0]

    @property
    def _source(self) -> BlockStore:
        """Where prompts are."""
        return self._stores[-1]

    def cache(self, width: int) -> BlockUnits:
        return BlockUnits(self._own, width)

    def remember(self, prefilled: Prefilled) -> dict[Request, Prompt]:
        return {request: prompt for prompts in prefilled.prompts for request, prompt in self._write(prompts).items()}

    def forget(self, prompt: Prompt) -> None:
        self._source.give_back(prompt.blocks)
        self._source.release(len(prompt.blocks))
        self._own.release(prompt.num_reserved)

    def logits(
        self, input_ids_N: Tensor, position_N: Tensor, cohorts: Sequence[tuple[BlockUnits, Sequence[Prompt]]]
    ) -> Tensor:
        all_units = [units for units, _ in cohorts]
        prompts = [prompt for _, own in cohorts for prompt in own]
        self._compact(all_units, prompts)
        inputs = self._inputs(all_units, prompts)
        inputs.load_rows(input_ids_N, position_N)
        _, readings = _meaning(inputs)
        first = 0
        for units in all_units:
            units.device_blocks_GM = readings[0].table_NM[first : first + units.num_rows : units.width]
            first += units.num_rows
        return self._graphs.run(inputs, self._compute)[: len(input_ids_N)]

    def _compute(self, inputs: StaticInputs) -> Tensor:
        """A step, of buffers alone."""
        model, position_N = self._model, inputs.position_N
        writing, readings = _meaning(inputs)
        enter(self._own, writing, position_N)
        readers = [
            BlockReader(store, reading, position_N, model.alibi_slopes)
            for store, reading in zip(self._stores, readings, strict=True)
        ]
        context = BlockAttention(self._own, writing, readers)
        logits_NV: Tensor = model.local_logits(model.decode(inputs.input_ids_N, position_N, context))
        return logits_NV

    def _inputs(self, all_units: Sequence[BlockUnits], prompts: list[Prompt]) -> StaticInputs:
        """What the host says about a step, in buffers."""
        written_2N = np.concatenate([units.grow() for units in all_units], axis=1)
        own = joined([units.text() for units in all_units])
        if self._read is None or self._read[0] != prompts:
            self._read = (prompts, prompts_of(prompts))
        texts = [[own], [self._read[1]]] if len(self._stores) == 2 else [[self._read[1], own]]
        if (versions := [store.version for store in self._stores]) != self._versions:
            self._graphs.clear()
            self._versions = versions
        need = StepShape(
            num_rows=len(prompts),
            num_blocks=tuple(store.end for store in self._stores),
            num_columns=tuple(sum(text.blocks_NM.shape[1] for text in read) for read in texts),
        )
        shape = self._graphs.shape(need, [store.capacity for store in self._stores])
        rest = (0, shape.num_rows - len(prompts))
        arrays = [np.pad(written_2N[0], rest, constant_values=PADDING), np.pad(written_2N[1], rest)]
        arrays.append(np.pad(own.place_N, rest))
        for store, read, blocks, columns in zip(self._stores, texts, shape.num_blocks, shape.num_columns, strict=True):
            arrays += reading_arrays(read, shape.num_rows, blocks, columns, store.num_readers)
        return self._graphs.inputs(shape, arrays)

    def _compact(self, all_units: Sequence[BlockUnits], prompts: Sequence[Prompt]) -> None:
        for store in self._stores:
            moved = store.compact()
            if moved is None:
                continue
            if store is self._own:
                for units in all_units:
                    units.blocks_GM = moved[units.blocks_GM]
            if store is self._source:
                for prompt in set(prompts):
                    prompt.blocks = moved[prompt.blocks]
                self._read = None

    def _write(self, prompts: Prompts) -> dict[Request, Prompt]:
        """Blocks for prompts that were computed together, filled; a common beginning is copied to each."""
        start = 0 if prompts.prefix is None else len(prompts.prefix.token_ids)
        num_blocks = [-(-(start + length) // BLOCK) for length in prompts.lengths]
        num_new = [request.num_sequences * -(-request.max_new_tokens // BLOCK) for request in prompts.requests]
        self._source.reserve(sum(num_blocks))
        self._own.reserve(sum(num_new))
        written: dict[Request, Prompt] = {}
        for request, length, num, new in zip(prompts.requests, prompts.lengths, num_blocks, num_new, strict=True):
            self._source.seat(request.num_sequences)
            written[request] = Prompt(self._source.take(num), start + length, new)
        if prompts.prefix is not None:
            layers = prompts.prefix.memory.layers
            self._fill(written.values(), (0, start), (_repeated(*layer, len(written)) for layer in layers))
        self._fill(written.values(), (start, None), prompts.layers)
        return written

    def _fill(self, prompts: Iterable[Prompt], part: tuple[int, int | None], layers: Iterable[Layer]) -> None:
        """Part of the tokens of each prompt, packed."""
        tokens = [np.arange(prompt.num_tokens)[slice(*part)] for prompt in prompts]
        blocks = [prompt.blocks[own // BLOCK] for prompt, own in zip(prompts, tokens, strict=True)]
        self._source.fill(np.concatenate(blocks), np.concatenate(tokens), layers)


def _meaning(inputs: StaticInputs) -> tuple[Writing, list[Reading]]:
    """Three arrays say where new entries go, four for each store what is read."""
    numbers = inputs.numbers
    return Writing(*numbers[:3]), [Reading(*numbers[first : first + 4]) for first in range(3, len(numbers), 4)]


def _repeated(k_HSK: Tensor, v_HSK: Tensor, num: int) -> Layer:
    """A memory's keys and values packed, [num * S, H, K], as often as there are prompts that begin with it."""
    return k_HSK.transpose(0, 1).repeat(num, 1, 1), v_HSK.transpose(0, 1).repeat(num, 1, 1)
