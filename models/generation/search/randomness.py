"""Random numbers that belong to a sample and a step, not to a batch. It knows no logits.

A generator with a state would give a row other numbers when its neighbours change. Here a number is a hash of (seed,
sample number, step, token), so batch size, order, replica and retry cannot matter.
"""

from torch import Tensor

_GOLDEN = (
    0x9E3779B97F4A7C15  # splitmix64's increment: Steele, Lea, Flood, "Fast splittable pseudorandom number generators"
)
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def sample_key(seed: int, sample: int) -> int:
    """What all random numbers of one sample of a request are made from, as a signed 64-bit number."""
    return _signed(_mix(_mix(seed & _MASK) + (sample + 1) * _GOLDEN & _MASK))


def gumbels(key_R: Tensor, step_R: Tensor, choice_RC: Tensor) -> Tensor:
    """One draw from the standard Gumbel distribution for each numbered choice of each row, float64 [R, C].

    Added to log-probabilities, the largest sum is a sample and the largest k are k samples without replacement
    (arXiv 1903.06059). Each choice has noise of its own, so rounding elsewhere in a row moves no sample: along a sum
    of probabilities it would, and in bfloat16 nearly every token drawn from a whole vocabulary was another one alone.
    """
    bits_RC = _splitmix(_splitmix(key_R, step_R)[:, None], choice_RC)
    uniform_RC = _shifted(bits_RC, 12).double().add_(0.5).mul_(2.0**-52)  # within (0, 1), ends excluded
    return uniform_RC.log_().neg_().log_().neg_()


def _splitmix(key: Tensor, number: Tensor) -> Tensor:
    """Pseudorandom bits as int64: splitmix64's output number `number` from the state `key`."""
    bits = key + (number + 1) * _signed(_GOLDEN)  # int64 wraps around, as the algorithm wants
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        bits = (bits ^ _shifted(bits, shift)) * _signed(factor)
    return bits ^ _shifted(bits, 31)


def _mix(bits: int) -> int:
    bits = (bits + _GOLDEN) & _MASK
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        bits = ((bits ^ bits >> shift) * factor) & _MASK
    return bits ^ bits >> 31


def _shifted(bits: Tensor, shift: int) -> Tensor:
    """Right shift that brings in zeros, also for negative numbers."""
    return (bits >> shift) & ((1 << (64 - shift)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits
