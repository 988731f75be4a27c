"""Transfers between host and device: uploads never synchronize, downloads are one copy. It knows no search.

`torch.tensor(values, device="cuda")` synchronizes: the host waits until the device has run everything queued before.
Done by every processor in every decode step, that cost a GPU most of its time.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int64]


def to_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.long) -> Tensor:
    """Convert a (nested) list to a tensor on the device, without a synchronization."""
    return queued(torch.tensor(values, dtype=dtype), device)


def upload(arrays: Sequence[Numbers], device: torch.device) -> list[Tensor]:
    """Copy integer arrays to the device in one transfer, without a synchronization; shapes are kept."""
    flat = queued(torch.from_numpy(np.concatenate([array.ravel() for array in arrays])), device)
    tensors = flat.split([array.size for array in arrays])
    return [tensor.view(array.shape) for tensor, array in zip(tensors, arrays, strict=True)]


def fetch(*matrices_MX: Tensor) -> list[list[list[Any]]]:
    """Return the rows of each matrix as lists, all in one copy from the device (one synchronization).

    Integers come back as floats, which is exact up to 2 ** 53.
    """
    rows = torch.cat([matrix_MX.double() for matrix_MX in matrices_MX], dim=1).tolist()
    found, first = [], 0
    for matrix_MX in matrices_MX:
        found.append([row[first : first + matrix_MX.shape[1]] for row in rows])
        first += matrix_MX.shape[1]
    return found


def true_indexes(is_true_N: Tensor) -> list[int]:
    """Return the indexes at which a mask is true: one copy from the device, searched on the host."""
    return [index for index, is_true in enumerate(is_true_N.tolist()) if is_true]


def queued(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor's copy on a device, which may still be on its way: what the device does next comes after it."""
    # A copy from pageable memory would synchronize; from pinned memory it is queued.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def host_buffer(size: int, device: torch.device) -> tuple[Tensor, Numbers]:
    """Return integers on the host, as a tensor to upload and as an array to write to; pinned where a GPU reads them."""
    if device.type == "cuda":
        pinned = torch.zeros(size, dtype=torch.long, pin_memory=True)
        return pinned, pinned.numpy()
    array = np.zeros(size, dtype=np.int64)
    return torch.from_numpy(array), array


def launching_on(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context for launches of Triton, which go to the current device, whichever one their arguments lie on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
