"""Attention by products is the formula, in blocks too, and in bfloat16 as near to it as torch's own kernel."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from batchloom.models.layers import product_attention
from batchloom.models.layers.attention import PackedAttention
from batchloom.models.layers.grouped_attention import GroupedAttention
from batchloom.models.layers.product_attention import ProductAttention

HEADS, HEAD_DIM = 3, 8
# float32 sums in another order, and powers of two in place of e; values near 1
CLOSE = {"atol": 5e-6, "rtol": 1e-5}


@pytest.fixture(params=["kernel", "plain"])
def way(request, monkeypatch):
    """bfloat16 by the compiled kernel where there is one, and without."""
    if request.param == "plain":
        monkeypatch.setattr(product_attention, "dense_kernels", lambda _: None)


def random_heads(num_tokens, seed):
    return torch.randn(num_tokens, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed))


def formula(q_THK, k_SHK, v_SHK, causal):
    """For one sequence; where causal, the queries are those of its last tokens."""
    q, k, v = (x.transpose(0, 1) for x in (q_THK, k_SHK, v_SHK))
    unseen = torch.ones(q.shape[1], k.shape[1]).triu(1 + k.shape[1] - q.shape[1]).bool() & causal
    scores = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).masked_fill(unseen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


@pytest.mark.parametrize("most_scores", [50, 1 << 20])
@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=7), causal=st.booleans())
def test_each_sequence_gets_what_the_formula_says(most_scores, pairs, causal):
    query_lengths = [num_queries for num_queries, _ in pairs]
    key_lengths = [num_queries + num_before for num_queries, num_before in pairs]
    q, k, v = (random_heads(sum(n), seed) for seed, n in enumerate((query_lengths, key_lengths, key_lengths)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product_attention, "MOST_SCORES", most_scores)
        found = ProductAttention(query_lengths, key_lengths, causal)(q, k, v, HEAD_DIM**-0.5)
    texts = zip(q.split(query_lengths), k.split(key_lengths), v.split(key_lengths), strict=True)
    assert torch.allclose(found, torch.cat([formula(*text, causal) for text in texts]), **CLOSE)


@pytest.mark.usefixtures("way")
def test_threads_share_the_runs_and_change_no_bit():
    lengths = [30, 30, 17, 17, 9, 4]
    q, k, v = (random_heads(sum(lengths), seed).bfloat16() for seed in (1, 2, 3))
    num_threads = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(ProductAttention(lengths, lengths, causal=True)(q, k, v, HEAD_DIM**-0.5))
            assert torch.get_num_threads() == threads
        assert torch.equal(*found)
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("deviation", [0.5, 2.0, 10.0])
def test_large_scores_lose_little_in_bfloat16(deviation, causal):
    """Scores that are rounded as they come are 3 to 8 times as far from the formula as torch's kernel is."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 200, 12, 64).unbind()
    q, k, v = ((q * deviation).bfloat16(), k.bfloat16(), v.bfloat16())
    expected = formula(q.double(), k.double(), v.double(), causal)
    of_torch = F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in (q, k, v)), is_causal=causal)[
        0
    ].transpose(0, 1)
    found = ProductAttention([200], [200], causal)(q, k, v, 64**-0.5)
    error, error_of_torch = ((x.double() - expected).norm() for x in (found, of_torch))
    # Two roundings more, of scores and of the sums before they are divided: 1.4 to 1.6 times in all.
    assert error < 1.7 * error_of_torch


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, ProductAttention), (torch.float32, GroupedAttention)])
def test_products_serve_bfloat16_on_a_cpu(dtype, kind):
    context = PackedAttention([64, 64], causal=True)
    context.attend(0, *(random_heads(128, seed).to(dtype) for seed in (1, 2, 3)))
    assert type(context._self_plan) is kind
    assert context.num_padded_tokens == 128
