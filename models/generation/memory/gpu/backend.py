"""The decode backend of GPUs: paged blocks, and decode steps of few shapes, each a CUDA graph. It knows no search.

Once a step the host computes which rows read which blocks, and uploads that; all else stays on the device, at addresses
that do not change.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from batchloom.models.footprint import BLOCK_PADDING
from batchloom.models.generation.memory.gpu.attention import BlockAttention, BlockReads, BlockWrites, enter
from batchloom.models.generation.memory.gpu.blocks import BLOCK_SIZE, PADDING_BLOCK, BlockStore
from batchloom.models.generation.memory.gpu.graphs import Graphs, StaticInputs
from batchloom.models.generation.memory.gpu.readers import reader_on
from batchloom.models.generation.memory.gpu.shapes import StepShape
from batchloom.models.generation.memory.gpu.tables import (
    BlockTable,
    PromptBlocks,
    concatenated,
    num_columns,
    padded,
    prompt_table,
    read_shapes,
    write_reads,
)
from batchloom.models.generation.memory.gpu.units import BlockUnits
from batchloom.models.generation.memory.prefill import Prefilled, PromptBatch
from batchloom.models.generation.model import GenerativeModel
from batchloom.models.generation.requests import Request

NUM_WRITES, NUM_READS = 3, 5  # arrays that say where new entries go, and of each store what is read

Layer = tuple[Tensor, Tensor]  # keys and values


class PagedBackend:
    """Prompts and generated tokens in paged blocks, and decode steps over any number of cohorts."""

    padding = BLOCK_PADDING

    def __init__(self, model: GenerativeModel) -> None:
        self._model = model
        like = torch.empty(0, dtype=model.dtype, device=model.device)
        self._stores = [
            BlockStore(model.num_layers, model.num_heads, model.head_dim, like)
            for _ in range(2 if model.is_encoder_decoder else 1)
        ]
        self._versions: list[int] = []
        self._reader = reader_on(model.device)
        self._graphs = Graphs(model.device, model.group.size)
        # The last step's prompts and their table; they seldom change from one step to the next.
        self._last_prompts: tuple[list[PromptBlocks], BlockTable] | None = None

    @property
    def _generated_store(self) -> BlockStore:
        """Holds generated tokens."""
        return self._stores[0]

    @property
    def _prompt_store(self) -> BlockStore:
        """Holds prompts; a decoder-only model's lie in the same store as generated tokens."""
        return self._stores[-1]

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks that are in use, and that are allocated, of all stores."""
        return sum(store.num_taken for store in self._stores), sum(store.capacity for store in self._stores)

    def cache(self, width: int) -> BlockUnits:
        """Return an empty cache for units of `width` sequences."""
        return BlockUnits(self._generated_store, width)

    def hold(self, prefilled: Prefilled) -> dict[Request, PromptBlocks]:
        """Copy packed prompts into blocks, and reserve the blocks that generated tokens may come to need."""
        return {request: prompt for batch in prefilled.batches for request, prompt in self._write(batch).items()}

    def release(self, prompt: PromptBlocks, erases: bool = False) -> None:
        """Free a prompt's blocks, and the reservation for its generated tokens; `erases`: with zeros in them."""
        if erases:
            self._prompt_store.erase(prompt.blocks)
        self._prompt_store.free(prompt.blocks)
        self._prompt_store.release(len(prompt.blocks))
        self._generated_store.release(prompt.num_reserved)

    def logits(
        self, input_ids_N: Tensor, position_N: Tensor, cohorts: Sequence[tuple[BlockUnits, Sequence[PromptBlocks]]]
    ) -> Tensor:
        """Return the logits [N, V] of one decode step; with a graph they are overwritten by the next step."""
        all_units = [units for units, _ in cohorts]
        prompts = [prompt for _, own in cohorts for prompt in own]
        self._compact(all_units, prompts)
        inputs = self._inputs(all_units, prompts)
        inputs.load_rows(input_ids_N, position_N)
        _, reads = _writes_and_reads(inputs)
        first = 0
        for units in all_units:
            units.device_blocks_GM = reads[0].table_NM[first : first + units.num_rows : units.width]
            first += units.num_rows
        return self._graphs.execute(inputs, self._compute)[: len(input_ids_N)]

    def _compute(self, inputs: StaticInputs) -> Tensor:
        """Compute a step from static buffers only."""
        model, position_N = self._model, inputs.position_N
        writes, reads = _writes_and_reads(inputs)
        enter(self._generated_store, writes, position_N)
        readers = [
            self._reader(store, own, position_N, model.alibi_slopes)
            for store, own in zip(self._stores, reads, strict=True)
        ]
        context = BlockAttention(writes, readers)
        return model.local_logits(model.decode(inputs.input_ids_N, position_N, context))

    def _inputs(self, all_units: Sequence[BlockUnits], prompts: list[PromptBlocks]) -> StaticInputs:
        """Allocate the new entries, and return the static buffers of the step's shape, loaded."""
        written_2N = np.concatenate([units.grow() for units in all_units], axis=1)
        generated = concatenated([units.table() for units in all_units])
        if self._last_prompts is None or self._last_prompts[0] != prompts:
            self._last_prompts = (prompts, prompt_table(prompts))
        table = self._last_prompts[1]
        tables = [[generated], [table]] if len(self._stores) == 2 else [[table, generated]]
        if (versions := [store.version for store in self._stores]) != self._versions:
            self._graphs.clear()
            self._versions = versions
        need = StepShape(
            num_rows=len(prompts),
            num_blocks=tuple(store.end for store in self._stores),
            num_columns=tuple(map(num_columns, tables)),
        )
        shape = self._graphs.shape(need, [store.capacity for store in self._stores])
        shapes: list[tuple[int, ...]] = [(shape.num_rows,)] * NUM_WRITES
        for store, blocks, columns in zip(self._stores, shape.num_blocks, shape.num_columns, strict=True):
            shapes += read_shapes(shape.num_rows, blocks, columns, store.num_readers)
        inputs = self._graphs.inputs(shape, shapes)
        host = inputs.host()
        for values_N, array, padding in zip(
            (*written_2N, generated.place_N), host[:NUM_WRITES], (PADDING_BLOCK, 0, 0), strict=True
        ):
            padded(values_N, array, padding)
        write_reads(tables[0], host[NUM_WRITES : NUM_WRITES + NUM_READS])
        if len(tables) == 2 and inputs.prompts is not table:  # they seldom change, and stand in arrays of their own
            write_reads(tables[1], host[NUM_WRITES + NUM_READS :])
            inputs.prompts = table
        inputs.send()
        return inputs

    def _compact(self, all_units: Sequence[BlockUnits], prompts: Sequence[PromptBlocks]) -> None:
        """Compact the stores, and renumber the blocks of whatever runs."""
        for store in self._stores:
            moved = store.compact()
            if moved is None:
                continue
            if store is self._generated_store:
                for units in all_units:
                    units.blocks_GM = moved[units.blocks_GM]
            if store is self._prompt_store:
                for prompt in set(prompts):
                    prompt.blocks = moved[prompt.blocks]
                self._last_prompts = None

    def _write(self, batch: PromptBatch) -> dict[Request, PromptBlocks]:
        """Allocate and fill the blocks of prompts that were computed together; a common prefix is copied to each."""
        start = 0 if batch.prefix is None else len(batch.prefix.token_ids)
        num_blocks = [-(-(start + length) // BLOCK_SIZE) for length in batch.lengths]
        num_new = [request.num_sequences * -(-request.max_own_tokens // BLOCK_SIZE) for request in batch.requests]
        self._prompt_store.reserve(sum(num_blocks))
        self._generated_store.reserve(sum(num_new))
        written: dict[Request, PromptBlocks] = {}
        for request, length, num, new in zip(batch.requests, batch.lengths, num_blocks, num_new, strict=True):
            self._prompt_store.allow_readers(request.num_sequences)
            written[request] = PromptBlocks(self._prompt_store.take(num), start + length, new)
        if batch.prefix is not None:
            layers = batch.prefix.memory.layers
            self._fill(written.values(), (0, start), (_repeated(*layer, len(written)) for layer in layers))
        self._fill(written.values(), (start, None), batch.layers)
        return written

    def _fill(self, prompts: Iterable[PromptBlocks], bounds: tuple[int, int | None], layers: Iterable[Layer]) -> None:
        """Write the tokens of each prompt within `bounds`, packed."""
        tokens = [np.arange(prompt.num_tokens)[slice(*bounds)] for prompt in prompts]
        blocks = [prompt.blocks[own // BLOCK_SIZE] for prompt, own in zip(prompts, tokens, strict=True)]
        self._prompt_store.fill(np.concatenate(blocks), np.concatenate(tokens), layers)


def _writes_and_reads(inputs: StaticInputs) -> tuple[BlockWrites, list[BlockReads]]:
    """Name the static arrays."""
    numbers = inputs.numbers
    firsts = range(NUM_WRITES, len(numbers), NUM_READS)
    return BlockWrites(*numbers[:NUM_WRITES]), [BlockReads(*numbers[first : first + NUM_READS]) for first in firsts]


def _repeated(k_HSK: Tensor, v_HSK: Tensor, num: int) -> Layer:
    """Return a prefix's keys and values packed, [num * S, H, K], once for each prompt that begins with it."""
    return k_HSK.transpose(0, 1).repeat(num, 1, 1), v_HSK.transpose(0, 1).repeat(num, 1, 1)
