"""Tensors that grow with the batch. It knows no request and no cache."""

from collections.abc import Sequence

from torch import Tensor


def enlarged(old: Tensor, shape: Sequence[int], fill: float = 0) -> Tensor:
    """Return a tensor of this shape with the values of `old` at its beginning and `fill` elsewhere.

    Where `shape` is smaller in a dimension, what does not fit is dropped.
    """
    new = old.new_full(tuple(shape), fill)
    common = tuple(slice(min(sizes)) for sizes in zip(old.shape, shape, strict=True))
    new[common] = old[common]
    return new
