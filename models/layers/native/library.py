"""The compiled kernels, loaded once a process, and the switch that turns them off."""

import ctypes
import logging
import os
import tempfile
from functools import cache
from pathlib import Path
from threading import Lock

import torch

from batchloom.models.layers.native.build import FEATURES, BuildError, features, library_file

logger = logging.getLogger(__name__)
SWITCH = "BATCHLOOM_KERNELS"
"""An environment variable: 0 leaves all to plain torch."""
_LOADING = Lock()

Pointer, Size, Int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_ARGUMENTS = {
    "int8_packed_size": (Size, Size),
    "int8_pack": (Pointer, Size, Size, Pointer, Pointer),
    "int8_product": (Pointer, Int, Size, Size, Size, Pointer, Pointer, Pointer, Pointer, Int, Pointer, Int),
    "bfloat16_packed_size": (Size, Size),
    "bfloat16_pack": (Pointer, Size, Size, Pointer),
    "bfloat16_product": (Pointer, Size, Size, Size, Pointer, Pointer, Int, Pointer, Int),
    "log_normalizers": (Pointer, Size, Size, Size, Pointer, Int),
    "packed_attention": (Pointer, Int),
    "step_attention": (Pointer, Pointer, Size, Pointer, Pointer, Int),
}


def kernels() -> ctypes.CDLL | None:
    """Return the library, compiled at the first call on a machine, or None where plain torch computes.

    A processor without the instructions, and the switch, are passed over in silence; a library that cannot be made is
    one warning.
    """
    with _LOADING:
        return _loaded()


def bfloat16_kernels() -> ctypes.CDLL | None:
    """Return the library where the processor multiplies bfloat16, too."""
    return kernels() if "avx512_bf16" in features() else None


def dense_kernels(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the library where its products of many rows are the fastest: not where oneDNN's have AMX.

    `dtype`: int8 or bfloat16, which is multiplied.
    """
    if "amx_tile" in features():
        return None
    return kernels() if dtype == torch.int8 else bfloat16_kernels()


@cache
def _loaded() -> ctypes.CDLL | None:
    if os.environ.get(SWITCH) == "0" or not features() >= FEATURES:
        return None
    try:
        return _load()
    except (BuildError, OSError, AttributeError) as error:
        logger.warning(
            "Products and attention on this CPU are computed by plain torch, which takes longer: kernels were not "
            "made, since %s. They need a C++ compiler on each node, or %s=0, which says that none is wanted",
            error,
            SWITCH,
        )
        return None


def _load() -> ctypes.CDLL:
    home = os.environ.get("BATCHLOOM_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "batchloom")
    try:
        library = ctypes.CDLL(str(library_file(Path(home) / "kernels")))
    except OSError:  # a home that cannot be written to, or that forbids to execute
        with tempfile.TemporaryDirectory() as folder:
            library = ctypes.CDLL(str(library_file(Path(folder))))
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = Size if name.endswith("_size") else None
    return library
