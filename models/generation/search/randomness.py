"""Counter-based random numbers: a hash of (seed, sample number, step, token). It knows no logits.

A generator with state would give a row other numbers when the rows beside it change. These do not depend on batch size,
order, replica or retry.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from batchloom.models.kernels import kernel_or

Gumbels = Callable[[Tensor, Tensor, Tensor], Tensor]

_GOLDEN = (
    0x9E3779B97F4A7C15  # splitmix64's increment: Steele, Lea, Flood, "Fast splittable pseudorandom number generators"
)
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def sample_key(seed: int, sample: int) -> int:
    """Return the key from which all random numbers of one sample are hashed, as a signed 64-bit integer."""
    return _signed(_mix(_mix(seed & _MASK) + (sample + 1) * _GOLDEN & _MASK))


def gumbels(key_R: Tensor, step_R: Tensor, choice_RC: Tensor) -> Tensor:
    """Return a standard Gumbel random number for each numbered choice of each row, float64 [R, C].

    Added to log-probabilities, the largest sum is a sample and the largest k are k samples without replacement
    (arXiv 1903.06059). Each choice has its own noise, so rounding of other probabilities does not change the sample.
    With sampling along cumulative probabilities it does: in bfloat16 nearly every token drawn from a whole vocabulary
    differed when the row was computed alone.
    """
    return _gumbels_on(choice_RC.device)(key_R, step_R, choice_RC)


def plain_gumbels(key_R: Tensor, step_R: Tensor, choice_RC: Tensor) -> Tensor:
    bits_RC = _splitmix(_splitmix(key_R, step_R)[:, None], choice_RC)
    uniform_RC = _shifted(bits_RC, 12).double().add_(0.5).mul_(2.0**-52)  # in the open interval (0, 1)
    return uniform_RC.log_().neg_().log_().neg_()


@cache
def _gumbels_on(device: torch.device) -> Gumbels:
    """Return the kernel where Triton works, and plain torch elsewhere."""

    def load() -> Gumbels:
        from batchloom.models.generation.search.kernels.gumbels import gumbels

        number_1 = torch.zeros(1, dtype=torch.long, device=device)
        gumbels(number_1, number_1, number_1[:, None])
        return gumbels

    plain: Gumbels = plain_gumbels
    return kernel_or(plain, device, load, without="random numbers are made by plain torch")


def _splitmix(key: Tensor, number: Tensor) -> Tensor:
    """Return output number `number` of splitmix64 from the state `key`, as int64."""
    bits = key + (number + 1) * _signed(_GOLDEN)  # int64 wraps around, as the algorithm requires
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        bits = (bits ^ _shifted(bits, shift)) * _signed(factor)
    return bits ^ _shifted(bits, 31)


def _mix(bits: int) -> int:
    bits = (bits + _GOLDEN) & _MASK
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        bits = ((bits ^ bits >> shift) * factor) & _MASK
    return bits ^ bits >> 31


def _shifted(bits: Tensor, shift: int) -> Tensor:
    """Shift right, filling with zeros also for negative numbers."""
    return (bits >> shift) & ((1 << (64 - shift)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits
