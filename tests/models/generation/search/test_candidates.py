"""Passes over the vocabulary: the largest logits and the normalizer, as torch computes them."""

import pytest
import torch

from batchloom.models.generation.search.candidates import TILE, log_normalizer, plain_log_normalizer, top_candidates


@pytest.mark.parametrize("vocab_size", [7, 300, 20 * TILE, 20 * TILE + 13])
@pytest.mark.parametrize("num", [1, 5, 8])
def test_two_levels_find_what_one_finds(vocab_size, num):
    logits_RV = torch.randn(6, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    logits_RV[0, -1] = 50.0
    logits_RV[1] = -torch.inf
    logits_RV[1, 3] = 0.0
    value_RC, token_RC = top_candidates(logits_RV, num)
    wanted_RC = logits_RV.topk(min(num, vocab_size)).values
    torch.testing.assert_close(value_RC, wanted_RC)
    torch.testing.assert_close(logits_RV.gather(1, token_RC), wanted_RC)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_normalizer_is_the_log_of_the_sum_of_exponentials(dtype):
    """Within 2e-5: float32 sums of 50 000 terms, whose logarithm is near 20."""
    logits_RV = (torch.randn(9, 50_265, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    logits_RV[0, :1000] = -torch.inf
    wanted_R = torch.logsumexp(logits_RV.double(), dim=-1)
    torch.testing.assert_close(log_normalizer(logits_RV).double(), wanted_R, atol=2e-5, rtol=0)


@pytest.mark.parametrize("vocab_size", [1, 15, 64, 1003])
def test_a_normalizer_of_what_is_not_finite_is_that_of_plain_torch(vocab_size):
    logits_RV = torch.randn(6, vocab_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits_RV[1] = -torch.inf
    logits_RV[2, -1] = torch.nan
    logits_RV[3] = torch.nan
    logits_RV[4, 0] = torch.inf
    logits_RV[5, :-1], logits_RV[5, -1] = -torch.inf, torch.nan
    others_between = torch.cat((logits_RV, logits_RV), dim=1)[:, :vocab_size]
    for logits in (logits_RV, others_between):
        found_R, wanted_R = log_normalizer(logits), plain_log_normalizer(logits)
        # float32 sums of up to 1,003 terms, whose logarithm is near 8.
        torch.testing.assert_close(found_R, wanted_R, atol=5e-6, rtol=0, equal_nan=True)


def test_a_row_has_its_normalizer_whatever_rows_are_beside_it():
    logits_RV = (5 * torch.randn(7, 50_265, generator=torch.Generator().manual_seed(0))).bfloat16()
    assert torch.equal(log_normalizer(logits_RV)[3:5], log_normalizer(logits_RV[3:5]))
