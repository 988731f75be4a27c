"""Block tables: which rows read which blocks in a step, as host arrays of few different sizes. It knows no tensor.

a row's blocks, and its place among the rows that read them             and by block
row 0    2 3 5    place 0                                                block     2    3    4    5    6
row 1    2 3 5    place 1                                                readers   0 1  0 1  2    0 1  2
row 2    4 6      place 0                                                count     32   9    20   2    1
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from batchloom.models.generation.memory.gpu.blocks import BLOCK_SIZE
from batchloom.models.transfers import Numbers


@dataclass(eq=False)
class PromptBlocks:
    """The blocks of a request's prompt, and how many its generated tokens may come to need."""

    blocks: Numbers
    num_tokens: int
    num_reserved: int = 0  # blocks


@dataclass(frozen=True)
class BlockTable:
    """For each row the blocks that it reads in order, 0 beyond the last, their tokens, and its place among readers."""

    blocks_NM: Numbers
    num_tokens_N: Numbers
    place_N: Numbers


def concatenated(tables: Sequence[BlockTable]) -> BlockTable:
    """Concatenate the tables of several cohorts' rows."""
    width = max(table.blocks_NM.shape[1] for table in tables)
    blocks = [np.pad(table.blocks_NM, ((0, 0), (0, width - table.blocks_NM.shape[1]))) for table in tables]
    tokens, places = [table.num_tokens_N for table in tables], [table.place_N for table in tables]
    return BlockTable(np.concatenate(blocks), np.concatenate(tokens), np.concatenate(places))


def prompt_table(prompts: Sequence[PromptBlocks]) -> BlockTable:
    """Return the table of each row's prompt; adjacent rows with one prompt are readers of the same blocks."""
    width = max(len(prompt.blocks) for prompt in prompts)
    shapes = ((len(prompts), width), len(prompts), len(prompts))
    table = BlockTable(*(np.zeros(shape, dtype=np.int64) for shape in shapes))
    before = None
    for row, prompt in enumerate(prompts):
        table.blocks_NM[row, : len(prompt.blocks)] = prompt.blocks
        table.num_tokens_N[row] = prompt.num_tokens
        table.place_N[row] = table.place_N[row - 1] + 1 if prompt is before else 0
        before = prompt
    return table


def read_shapes(num_rows: int, num_blocks: int, num_columns: int, num_readers: int) -> list[tuple[int, ...]]:
    """Return the shapes of what `write_reads` writes: readers [B, R], counts [B], each row's blocks [N, M], its places
    among their readers [N, M], and how many these are [N]."""
    return [(num_blocks, num_readers), (num_blocks,), (num_rows, num_columns), (num_rows, num_columns), (num_rows,)]


def num_columns(tables: Sequence[BlockTable]) -> int:
    """Return the most blocks that one row reads in all of these tables."""
    return int(sum(np.count_nonzero(table.blocks_NM, axis=1) for table in tables).max())


def write_reads(tables: Sequence[BlockTable], arrays: Sequence[Numbers]) -> None:
    """Write into arrays of those shapes what is read by rows that read all of these tables, one after the other."""
    reader_BR, count_B, table_NM, place_NM, length_N = arrays
    reader_BR.fill(len(table_NM))
    for array in (count_B, table_NM, place_NM, length_N):
        array.fill(0)
    for table in tables:
        row_E, column_E = table.blocks_NM.nonzero()
        block_E, place_E = table.blocks_NM[row_E, column_E], table.place_N[row_E]
        reader_BR[block_E, place_E] = row_E
        count_B[block_E] = np.clip(table.num_tokens_N[row_E] - column_E * BLOCK_SIZE, 0, BLOCK_SIZE)
        at_E = length_N[row_E] + column_E
        table_NM[row_E, at_E], place_NM[row_E, at_E] = block_E, place_E
        length_N[: len(table.blocks_NM)] += np.count_nonzero(table.blocks_NM, axis=1)


def padded(values_N: Numbers, array_P: Numbers, padding: int = 0) -> None:
    """Write values into a longer array, and a number into the rest."""
    array_P[: len(values_N)] = values_N
    array_P[len(values_N) :] = padding
