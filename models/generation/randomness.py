"""Random numbers that belong to a sample and a step, not to a batch. It knows no logits.

A generator with a state would give a row other numbers when its neighbours change. Here the number is a hash of (seed,
sample number, step), so batch size, order, replica and retry cannot matter.
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


def uniforms(key_R: Tensor, step_R: Tensor) -> Tensor:
    """One number in [0, 1) a row, float64 [R]: the top 53 bits of splitmix64 at (key, step)."""
    bits_R = key_R + (step_R + 1) * _signed(_GOLDEN)  # int64 wraps around, as the algorithm wants
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        bits_R = (bits_R ^ _shifted(bits_R, shift)) * _signed(factor)
    bits_R = bits_R ^ _shifted(bits_R, 31)
    return _shifted(bits_R, 11).double() * 2.0**-53


def _mix(bits: int) -> int:
    bits = (bits + _GOLDEN) & _MASK
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        bits = ((bits ^ bits >> shift) * factor) & _MASK
    return bits ^ bits >> 31


def _shifted(bits_R: Tensor, shift: int) -> Tensor:
    """Right shift that brings in zeros, also for negative numbers."""
    return (bits_R >> shift) & ((1 << (64 - shift)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits
