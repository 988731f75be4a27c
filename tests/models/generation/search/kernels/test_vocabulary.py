"""The kernel over the vocabulary gives what plain torch gives; where no GPU is, Triton's interpreter runs it."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not made for this platform")

from batchloom.models.generation.search.candidates import plain_best_and_normalizer
from batchloom.models.generation.search.kernels.vocabulary import COLUMNS_AT_ONCE, best_and_normalizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # by the interpreter's NumPy
SIZES = [1, 7, 300, COLUMNS_AT_ONCE, 2 * COLUMNS_AT_ONCE + 13]


def logits(num_rows: int, vocab_size: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocab_size)
    return (torch.randn(num_rows, vocab_size, generator=generator) * 5).to(DEVICE, dtype)


# Normalizers are float32 sums of the same numbers in another order; the logarithm is near 20.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", SIZES)
def test_the_kernel_gives_the_best_and_the_normalizer(vocab_size: int, dtype: torch.dtype) -> None:
    logits_RV = logits(3, vocab_size, dtype)
    found, right = best_and_normalizer(logits_RV), plain_best_and_normalizer(logits_RV)
    assert torch.equal(found[0], right[0])
    assert torch.equal(logits_RV.gather(1, found[1][:, None])[:, 0], right[0])
    torch.testing.assert_close(found[2], right[2], atol=2e-5, rtol=0)


@pytest.mark.parametrize("vocab_size", SIZES)
def test_of_equal_logits_the_first_wins(vocab_size: int) -> None:
    logits_RV = torch.zeros(2, vocab_size, device=DEVICE)
    logits_RV[1, vocab_size // 2 :] = 1.0
    assert best_and_normalizer(logits_RV)[1].tolist() == [0, vocab_size // 2]


@pytest.mark.parametrize("vocab_size", SIZES)
def test_what_is_not_finite_is_as_in_plain_torch(vocab_size: int) -> None:
    logits_RV = logits(6, vocab_size, torch.float32)
    logits_RV[0] = -torch.inf
    logits_RV[1, 1:] = -torch.inf
    logits_RV[2, -1] = torch.nan
    logits_RV[3, -1] = torch.inf
    logits_RV[4] = torch.nan
    value_R, token_R, normalizer_R = best_and_normalizer(logits_RV)
    right_value_R, right_token_R, right_normalizer_R = plain_best_and_normalizer(logits_RV)
    assert (value_R - normalizer_R)[2:5].isnan().all(), "a log-probability must be NaN"
    torch.testing.assert_close(normalizer_R, right_normalizer_R, atol=2e-5, rtol=0, equal_nan=True)
    finite = [0, 1, 5]
    assert torch.equal(value_R[finite], right_value_R[finite])
    assert torch.equal(token_R[finite], right_token_R[finite])
    assert ((token_R >= 0) & (token_R < vocab_size)).all()


def test_rows_may_lie_apart_and_be_none() -> None:
    """A head is padded to a multiple of eight columns, so a row is longer than the vocabulary."""
    wide_RW = logits(4, 304, torch.float32)
    logits_RV = wide_RW[:, :300]
    found = best_and_normalizer(logits_RV)
    for one, other in zip(found, best_and_normalizer(logits_RV.contiguous()), strict=True):
        assert torch.equal(one, other)
    assert [len(one) for one in best_and_normalizer(logits_RV[:0])] == [0, 0, 0]
