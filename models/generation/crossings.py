"""Between host and device: lists go up without waiting, and what comes down comes in one copy. It knows no search.

A tensor made from a list holds the host until the device has done all that it was told. Made by every processor in
every step, such tensors cost a GPU most of its time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int64]


def to_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.long) -> Tensor:
    """A list, of lists as the case may be, as a tensor."""
    return _sent(torch.tensor(values, dtype=dtype), device)


def upload(arrays: Sequence[Numbers], device: torch.device) -> list[Tensor]:
    """Arrays of whole numbers in one copy."""
    flat = _sent(torch.from_numpy(np.concatenate([array.ravel() for array in arrays])), device)
    parts = flat.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def fetch(*parts_MX: Tensor) -> list[list[list[Any]]]:
    """The rows of matrices as lists, in one copy, for each matrix; whole numbers come as floats, exact to 2 ** 53."""
    rows = torch.cat([part_MX.double() for part_MX in parts_MX], dim=1).tolist()
    found, first = [], 0
    for part_MX in parts_MX:
        found.append([row[first : first + part_MX.shape[1]] for row in rows])
        first += part_MX.shape[1]
    return found


def places_of(is_true_N: Tensor) -> list[int]:
    """Where a mask is true: one copy, and the host looks."""
    return [place for place, is_true in enumerate(is_true_N.tolist()) if is_true]


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    # Memory that is not pinned would be copied only when the device is idle.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
