"""Paged blocks: who owns which, how they move, and how few are unused."""

import random

import numpy as np
import pytest
import torch

from batchloom.models.generation.memory.gpu.blocks import BLOCK_SIZE, PADDING_BLOCK, BlockStore, bucket
from batchloom.models.generation.memory.gpu.shapes import FEW_BLOCKS, StepShape
from batchloom.models.generation.memory.gpu.tables import (
    BlockTable,
    PromptBlocks,
    concatenated,
    num_columns,
    prompt_table,
    read_shapes,
    write_reads,
)


def store():
    return BlockStore(num_layers=2, num_heads=1, head_dim=4, like=torch.empty(0))


def test_buckets_are_few_and_at_most_a_quarter_too_large():
    buckets = [bucket(number) for number in range(1, 5000)]
    assert all(number <= size <= number * 5 / 4 for number, size in enumerate(buckets, start=1))
    assert len(set(buckets)) < 50
    assert [bucket(size) for size in buckets] == buckets


def test_a_new_shape_serves_what_it_was_made_for_and_no_shape_serves_much_less():
    choice = random.Random(4)
    needs = [
        StepShape(
            choice.randint(1, 512), (choice.randint(2, 4000), choice.randint(2, 4000)), (3, choice.randint(1, 40))
        )
        for _ in range(60)
    ]
    for need in needs:
        shape = need.roomy([5000, 4000])
        assert shape.serves(need)
        assert shape.num_blocks[1] <= 4000
        for other in needs:
            if shape.serves(other):
                assert other.total <= shape.total <= 5 / 4 * other.total + FEW_BLOCKS
                assert other.num_rows <= shape.num_rows <= max(8, 2 * other.num_rows)


def test_blocks_keep_what_was_written_however_they_move():
    """Texts come, go and are moved together; each can always be read back, and no block is held twice."""
    choice, blocks, texts = random.Random(3), store(), {}
    for number in range(200):
        if texts and choice.random() < 0.5:
            blocks.free(texts.pop(choice.choice(list(texts))))
        num_tokens = choice.randint(1, 3 * BLOCK_SIZE)
        mine = blocks.take(-(-num_tokens // BLOCK_SIZE))
        token_N = np.arange(num_tokens)
        value_NHK = torch.full((num_tokens, 1, 4), float(number))
        blocks.fill(mine[token_N // BLOCK_SIZE], token_N, [(value_NHK, -value_NHK)] * 2)
        texts[number] = mine
        if (moved := blocks.compact()) is not None:
            texts = {key: moved[own] for key, own in texts.items()}
        held = np.concatenate(list(texts.values()))
        assert len(set(held.tolist())) == len(held) == blocks.num_taken - 2
        assert held.min() > PADDING_BLOCK
        assert held.max() < blocks.end <= bucket(blocks.end) <= blocks.capacity
        for key, own in texts.items():
            assert blocks.layers[1][0, own[0], 0, 0, 0] == key
    assert blocks.end <= 8 / 7 * blocks.num_taken + 1, "holes are left"


@pytest.mark.parametrize("width", [2, 3])
def test_reordering_moves_who_descends_from_what_and_nothing_else(width):
    blocks = store()
    blocks.allow_readers(width)
    mine = torch.from_numpy(blocks.take(2))[None]
    blocks.descent_BRS.zero_()
    for beam in range(width):
        blocks.descent_BRS[mine, beam, beam] = True
    blocks.reorder(mine, torch.tensor([[width - 1] * width]))
    expected_RS = torch.zeros(width, BLOCK_SIZE, dtype=torch.bool)
    expected_RS[:, width - 1] = True
    for block in mine[0]:
        assert torch.equal(blocks.descent_BRS[block, :width], expected_RS)


def test_rows_and_blocks_name_each_other():
    """The drawing of tables.py: two beams of one request beside another request."""
    prompts = [PromptBlocks(np.array([2, 3]), BLOCK_SIZE + 9)] * 2 + [PromptBlocks(np.array([4]), 20)]
    generated = BlockTable(np.array([[5], [5], [6]]), np.array([2, 2, 1]), np.array([0, 1, 0]))
    arrays = [np.full(shape, 99) for shape in read_shapes(4, 8, 4, 2)]  # what the last step left there
    write_reads([prompt_table(prompts), concatenated([generated])], arrays)
    reader_BR, count_B, table_NM, place_NM, length_N = arrays
    assert reader_BR[2:7].tolist() == [[0, 1], [0, 1], [2, 4], [0, 1], [2, 4]]
    assert count_B.tolist() == [0, 0, BLOCK_SIZE, 9, 20, 2, 1, 0]
    assert table_NM.tolist() == [[2, 3, 5, 0], [2, 3, 5, 0], [4, 6, 0, 0], [0, 0, 0, 0]]
    assert place_NM.tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert length_N.tolist() == [3, 3, 2, 0]
    assert num_columns([prompt_table(prompts), concatenated([generated])]) == 3
