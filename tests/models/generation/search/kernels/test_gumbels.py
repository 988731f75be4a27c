"""The kernel of random numbers gives what plain torch gives; where no GPU is, Triton's interpreter runs it."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not made for this platform")

from batchloom.models.generation.search.kernels.gumbels import CHOICES_AT_ONCE, gumbels
from batchloom.models.generation.search.randomness import plain_gumbels, sample_key

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning"
)  # uint64 wraps around, in NumPy too


@pytest.mark.parametrize("num_choices", [1, 5, CHOICES_AT_ONCE, 2 * CHOICES_AT_ONCE + 77])
@pytest.mark.parametrize("is_expanded", [False, True])
def test_the_kernel_gives_the_same_noise(num_choices: int, is_expanded: bool) -> None:
    """The bits are the same; a logarithm may differ in the last of 53 bits, which is more near its zero."""
    num_rows = 3
    key_R = torch.tensor([sample_key(seed, 1) for seed in range(num_rows)], device=DEVICE)
    step_R = torch.tensor([0, 1, 900], device=DEVICE)
    # tiles have negative numbers, and continuations of beams large ones
    choice_RC = torch.arange(num_choices, device=DEVICE)[None] * torch.tensor([[1], [-1], [1 << 33]], device=DEVICE)
    if is_expanded:
        choice_RC = choice_RC[1].expand(num_rows, -1)
    found = gumbels(key_R, step_R, choice_RC)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, plain_gumbels(key_R, step_R, choice_RC), atol=1e-14, rtol=1e-14)


def test_no_rows_and_no_choices_are_none() -> None:
    none = torch.zeros(0, dtype=torch.long, device=DEVICE)
    assert gumbels(none, none, none[:, None].expand(0, 5)).shape == (0, 5)
    assert gumbels(none.new_ones(2), none.new_ones(2), none.expand(2, 0)).shape == (2, 0)
