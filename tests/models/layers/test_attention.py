"""Packed attention gives each sequence what it gets alone, whatever its neighbours and however it is grouped."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchloom.models.layers.attention import EncoderMemory, PackedAttention
from batchloom.models.layers.grouped_attention import DeviceGroups, GroupedAttention
from batchloom.models.layers.packing import lengths_to, packing_of
from batchloom.models.layers.positions import alibi_slopes, positions_of

HEADS, HEAD_DIM = 3, 8
# float32 sums in another order; values near 1
CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def random_heads(num_tokens, seed):
    return torch.randn(num_tokens, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed))


def plain_attention(q_THK, k_SHK, v_SHK, causal, slopes=None):
    """The formula, for one sequence."""
    scores_HTS = torch.einsum("thk,shk->hts", q_THK, k_SHK) * HEAD_DIM**-0.5
    if slopes is not None:
        scores_HTS = scores_HTS + slopes[:, None, None] * torch.arange(len(k_SHK))
    if causal:
        future = torch.ones(len(q_THK), len(k_SHK)).triu(1).bool()
        scores_HTS = scores_HTS.masked_fill(future, float("-inf"))
    return torch.einsum("hts,shk->thk", scores_HTS.softmax(-1), v_SHK)


def one_by_one(q, k, v, query_lengths, key_lengths, causal, slopes=None):
    rows = zip(q.split(query_lengths), k.split(key_lengths), v.split(key_lengths), strict=True)
    return torch.cat([plain_attention(*row, causal, slopes) for row in rows])


lengths_of_documents = st.lists(st.integers(1, 40), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_documents, causal=st.booleans(), alibi=st.booleans())
def test_self_attention_equals_each_sequence_alone(lengths, causal, alibi):
    slopes = alibi_slopes(HEADS) if alibi else None
    q, k, v = (random_heads(sum(lengths), seed) for seed in (1, 2, 3))
    found = PackedAttention(lengths, causal, alibi_slopes=slopes).attend(0, q, k, v)
    assert torch.allclose(found, one_by_one(q, k, v, lengths, lengths, causal, slopes), **CLOSE)


@settings(max_examples=40, deadline=None)
@given(lengths=lengths_of_documents, causal=st.booleans())
def test_wide_groups_give_what_each_sequence_gets_alone(lengths, causal):
    q, k, v = (random_heads(sum(lengths), seed) for seed in (1, 2, 3))
    attention = DeviceGroups(lengths, lengths, causal)
    found = attention(q, k, v, scale=HEAD_DIM**-0.5)
    assert torch.allclose(found, one_by_one(q, k, v, lengths, lengths, causal), **CLOSE)
    assert attention.num_positions <= 1.5 * sum(lengths)


def test_short_texts_are_few_wide_groups():
    lengths = [8 + row % 40 for row in range(1000)]
    assert (
        len(DeviceGroups(lengths, lengths, causal=False).groups)
        <= 5
        < 20
        < len(GroupedAttention(lengths, lengths, causal=False).groups)
    )


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 60)), min_size=1, max_size=9))
def test_cross_attention_equals_each_sequence_alone(pairs):
    query_lengths, key_lengths = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    q = random_heads(sum(query_lengths), 1)
    k, v = random_heads(sum(key_lengths), 2), random_heads(sum(key_lengths), 3)
    context = PackedAttention(query_lengths, causal=True, cross=EncoderMemory(key_lengths, [(k, v)]))
    expected = one_by_one(q, k, v, query_lengths, key_lengths, causal=False)
    assert torch.allclose(context.cross_attend(0, q), expected, **CLOSE)


@settings(max_examples=40, deadline=None)
@given(lengths=lengths_of_documents, alibi=st.booleans())
def test_the_last_queries_see_what_they_see_among_all(lengths, alibi):
    slopes = alibi_slopes(HEADS) if alibi else None
    q, k, v = (random_heads(sum(lengths), seed) for seed in (1, 2, 3))
    context = PackedAttention(lengths, causal=True, alibi_slopes=slopes)
    last = context.last_tokens(q.device)
    found = context.last().attend(0, q[last], k, v)
    assert torch.allclose(found, context.attend(0, q, k, v)[last], **CLOSE)


def test_alibi_keeps_its_precision_in_bfloat16():
    """In one bfloat16 column position 1000 would be off by 4; in three the bias is exact to 24 bits."""
    lengths, slopes = [1500], alibi_slopes(HEADS)
    q, k, v = (random_heads(1500, seed).bfloat16() for seed in (1, 2, 3))
    found = PackedAttention(lengths, causal=True, alibi_slopes=slopes).attend(0, q, k, v)
    expected = plain_attention(q.float(), k.float(), v.float(), causal=True, slopes=slopes)
    # bfloat16 keeps 8 bits: results near 2 round by 2 / 256
    assert (found.float() - expected).abs().max() < 0.02


def test_alibi_does_not_overflow_float16_at_late_positions():
    lengths, slopes = [9000], alibi_slopes(8)[:HEADS]
    q, k, v = (random_heads(9000, seed).half() for seed in (1, 2, 3))
    context = PackedAttention(lengths, causal=True, alibi_slopes=slopes)
    last = context.last_tokens(q.device)
    expected = plain_attention(q[last].float(), k.float(), v.float(), causal=False, slopes=slopes)
    assert (context.last().attend(0, q[last], k, v).float() - expected).abs().max() < 0.01


def test_equal_lengths_make_one_call_and_no_padding():
    attention = GroupedAttention([7, 7, 7], [7, 7, 7], causal=False)
    assert [(group.size, group.num_keys, group.key_lengths) for group in attention.groups] == [(3, 7, None)]


def test_lengths_far_apart_do_not_share_a_call():
    attention = GroupedAttention([5, 100, 97, 5], [5, 100, 97, 5], causal=False)
    assert [(group.size, group.num_keys) for group in attention.groups] == [(2, 100), (2, 5)]


@pytest.mark.parametrize("num_heads", [1, 2, 3, 5, 8, 12, 14, 16, 112])
def test_alibi_slopes_equal_the_references(num_heads):
    from transformers.models.bloom.modeling_bloom import _get_alibi_slopes

    assert torch.equal(alibi_slopes(num_heads), _get_alibi_slopes(num_heads, torch.device("cpu")))


def test_positions_begin_anew_in_each_sequence():
    assert positions_of([2, 1, 3]).tolist() == [0, 1, 0, 0, 1, 2]
    assert lengths_to([3, 2], [2, 1], torch.device("cpu")).tolist() == [0, 1, 3]


def test_unpacking_undoes_packing_and_leaves_zeros():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    packing = packing_of(torch.zeros(2, 3, dtype=torch.long), mask)
    values = torch.tensor([[1, 2, 9], [3, 4, 5]])
    packed = packing.pack(values)
    assert packed.tolist() == [1, 2, 3, 4, 5]
    assert packing.unpack(packed).tolist() == [[1, 2, 0], [3, 4, 5]]
    assert packing.lengths == [2, 3]
