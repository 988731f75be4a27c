"""The pool gives what plain attention over written-out histories gives, while beams move and units come and go."""

import random

import pytest
import torch

from batchloom.models.generation.memory.cpu.aged_pools import AgedPools
from batchloom.models.generation.memory.cpu.attention import StepAttention
from batchloom.models.generation.memory.cpu.entry_pool import EntryPool

H, K = 2, 4


def plain_attention(history, q_HK, slopes, position):
    """One query over a list of (key [H, K], value [H, K], position)."""
    k_HSK = torch.stack([key for key, _, _ in history], dim=1)
    v_HSK = torch.stack([value for _, value, _ in history], dim=1)
    scores_HS = torch.einsum("hk,hsk->hs", q_HK, k_HSK)
    if slopes is not None:
        scores_HS = scores_HS + slopes[:, None] * torch.tensor([where - position for _, _, where in history])
    return torch.einsum("hs,hsk->hk", scores_HS.softmax(-1), v_HSK)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("has_alibi", [False, True])
def test_pooled_attention_is_plain_attention_over_each_sequences_own_history(width, has_alibi):
    """Also while pools of several ages begin, join and end."""
    torch.manual_seed(width)
    most_pools = 0
    choice = random.Random(width)
    slopes = torch.tensor([0.5, 0.125]) if has_alibi else None
    cache = AgedPools(lambda: EntryPool(1, H, K, width, torch.empty(0), slopes))
    histories: list[list[list]] = []  # of each unit, of each sequence
    positions: list[int] = []
    for _ in range(120):
        num_new = choice.choice((0, 0, 1, 2)) if histories else 2
        if num_new:
            cache.extend(num_new)
            histories += [[[] for _ in range(width)] for _ in range(num_new)]
            positions += [choice.randint(0, 5) for _ in range(num_new)]
        q_NHK, k_NHK, v_NHK = torch.randn(3, len(histories) * width, H, K)
        pool_rows = cache.rows([()] * len(q_NHK))
        context = StepAttention(pool_rows, torch.tensor(positions).repeat_interleave(width), True, slopes)
        attended_NHK = context.attend(0, q_NHK * K**0.5, k_NHK, v_NHK)
        most_pools = max(most_pools, len(pool_rows))
        for row in range(len(histories) * width):
            unit, sequence = divmod(row, width)
            histories[unit][sequence].append((k_NHK[row], v_NHK[row], positions[unit]))
            wanted_HK = plain_attention(histories[unit][sequence], q_NHK[row], slopes, positions[unit])
            torch.testing.assert_close(attended_NHK[row], wanted_HK, atol=1e-5, rtol=1e-5)
        positions = [position + 1 for position in positions]
        if width > 1:
            parents = [[choice.randrange(width) for _ in range(width)] for _ in histories]
            cache.reorder(torch.tensor(parents))
            histories = [[list(unit[parent]) for parent in own] for unit, own in zip(histories, parents, strict=True)]
        if choice.random() < 0.4:
            kept = [unit for unit in range(len(histories)) if choice.random() < 0.8]
            cache.keep(kept)
            histories, positions = [histories[unit] for unit in kept], [positions[unit] for unit in kept]
    assert most_pools > 1


def test_a_request_that_starts_does_not_get_the_room_of_an_old_one():
    cache = AgedPools(lambda: EntryPool(1, H, K, 1, torch.empty(0), None))
    cache.extend(1)
    for step in range(100):
        if step == 90:
            cache.extend(20)
        for rows in cache.rows([()] * 21):
            rows.pool.begin_step(torch.full((rows.pool.num_units,), step))
    assert [pool.num_units for pool in cache.pools] == [1, 20]
    assert cache.pools[1].capacity < 20
    cache.keep(list(range(1, 21)))
    assert [pool.num_units for pool in cache.pools] == [20]


def test_entries_without_descendants_are_dropped():
    """Four beams that all go on from the first leave one entry a step: the pool grows with the text, not the beams."""
    pool = EntryPool(1, H, K, 4, torch.empty(0), None)
    pool.extend(1)
    for step in range(200):
        pool.begin_step(torch.tensor([step]))
        pool.reorder(torch.zeros(1, 4, dtype=torch.long))
    assert pool.capacity < 200 + 2 * 4 * 8
