"""Which rows read which blocks in a step, as arrays of few different sizes. It runs on the host and knows no tensor.

a row's text, block by block, and its place among those who read it     and turned around
row 0    2 3 5    place 0                                                block     2    3    4    5    6
row 1    2 3 5    place 1                                                readers   0 1  0 1  2    0 1  2
row 2    4 6      place 0                                                count     32   9    20   2    1
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from batchloom.models.generation.crossings import Numbers
from batchloom.models.generation.memory.gpu.blocks import BLOCK


@dataclass(eq=False)
class Prompt:
    """Where a request's prompt lies, and what its answers may come to take."""

    blocks: Numbers
    num_tokens: int
    num_reserved: int = 0  # blocks


@dataclass(frozen=True)
class Text:
    """For each row a text that it reads: the blocks in order, 0 beyond the last, their tokens, and the row's place."""

    blocks_NM: Numbers
    num_tokens_N: Numbers
    place_N: Numbers


def joined(texts: Sequence[Text]) -> Text:
    """The texts of several cohorts' rows, one after the other."""
    width = max(text.blocks_NM.shape[1] for text in texts)
    blocks = [np.pad(text.blocks_NM, ((0, 0), (0, width - text.blocks_NM.shape[1]))) for text in texts]
    tokens, places = [text.num_tokens_N for text in texts], [text.place_N for text in texts]
    return Text(np.concatenate(blocks), np.concatenate(tokens), np.concatenate(places))


def prompts_of(prompts: Sequence[Prompt]) -> Text:
    """The prompts of rows; neighbours with one prompt read it together."""
    width = max(len(prompt.blocks) for prompt in prompts)
    text = Text(*(np.zeros(shape, dtype=np.int64) for shape in ((len(prompts), width), len(prompts), len(prompts))))
    before = None
    for row, prompt in enumerate(prompts):
        text.blocks_NM[row, : len(prompt.blocks)] = prompt.blocks
        text.num_tokens_N[row] = prompt.num_tokens
        text.place_N[row] = text.place_N[row - 1] + 1 if prompt is before else 0
        before = prompt
    return text


def reading_arrays(
    texts: Sequence[Text], num_rows: int, num_blocks: int, num_columns: int, num_readers: int
) -> list[Numbers]:
    """Readers [B, R], counts [B], tables [N, M] and places [N, M] where each row reads these texts."""
    reader_BR = np.full((num_blocks, num_readers), num_rows)
    count_B = np.zeros(num_blocks, dtype=np.int64)
    for text in texts:
        row_E, column_E = text.blocks_NM.nonzero()
        block_E = text.blocks_NM[row_E, column_E]
        reader_BR[block_E, text.place_N[row_E]] = row_E
        count_B[block_E] = np.clip(text.num_tokens_N[row_E] - column_E * BLOCK, 0, BLOCK)
    table_NM = np.concatenate([text.blocks_NM for text in texts], axis=1)
    place_NM = np.concatenate([text.place_N[:, None].repeat(text.blocks_NM.shape[1], axis=1) for text in texts], axis=1)
    room = ((0, num_rows - len(table_NM)), (0, num_columns - table_NM.shape[1]))
    return [reader_BR, count_B, np.pad(table_NM, room), np.pad(place_NM, room)]
