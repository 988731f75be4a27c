"""The kernel that bans n-grams bans what plain torch bans; where no GPU is, Triton's interpreter runs it."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not made for this platform")

from batchloom.models.generation.search.kernels import ngrams as kernels
from batchloom.models.generation.search.ngrams import Texts, plain_ban_completions
from batchloom.models.generation.search.vocabulary import WHOLE, DividedVocabulary
from batchloom.models.ranks.group import TensorParallel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # by the interpreter's NumPy
NUM_ROWS, NUM_TOKENS = 5, 7


def texts(width: int, seed: int) -> Texts:
    """Texts of 1 to `width` of two different tokens, so that n-grams recur; columns of a wider matrix, as History's."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randint(0, 2, (NUM_ROWS, width + 3), generator=generator) * (NUM_TOKENS - 1)
    length = torch.randint(1, width + 1, (NUM_ROWS,), generator=generator)
    length[0], length[1] = width, 1
    return Texts(wide.to(DEVICE)[:, :width], length.to(DEVICE))


def logits(width: int, dtype: torch.dtype) -> torch.Tensor:
    made = torch.randn(NUM_ROWS, width, generator=torch.Generator().manual_seed(width)).to(DEVICE, dtype)
    made[2, ::3], made[3, ::3] = torch.nan, torch.inf  # which stay not finite
    return made


@pytest.mark.parametrize("at_once", [4, 256])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("width", [1, 2, 4, 40])
def test_the_same_tokens_are_banned(monkeypatch: pytest.MonkeyPatch, width: int, size: int, at_once: int) -> None:
    monkeypatch.setattr(kernels, "WINDOWS_AT_ONCE", at_once)
    own, prompts = texts(width, 1), texts(50, 2)
    for text in (own, prompts):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            found, right = logits(NUM_TOKENS, dtype), logits(NUM_TOKENS, dtype)
            kernels.ban_completions(found, own, text, size, WHOLE)
            plain_ban_completions(right, own, text, size, WHOLE)
            torch.testing.assert_close(found, right, rtol=0, atol=0, equal_nan=True)
    assert right.isneginf().any() or size > width


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_bans_its_own_columns(rank: int) -> None:
    vocabulary = DividedVocabulary(NUM_TOKENS, TensorParallel(size=2, rank=rank))
    own = texts(40, 3)
    found, right = logits(4, torch.float32), logits(4, torch.float32)
    kernels.ban_completions(found, own, own, 2, vocabulary)
    plain_ban_completions(right, own, own, 2, vocabulary)
    assert right.isneginf().any()
    torch.testing.assert_close(found, right, rtol=0, atol=0, equal_nan=True)
