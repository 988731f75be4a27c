"""The compiled kernels, loaded once a process, and the switch that turns them off."""

import ctypes
import logging
import os
import tempfile
from functools import cache
from pathlib import Path
from threading import Lock

import torch

from batchloom.models.cache_home import cache_home
from batchloom.models.layers.native.build import FEATURES, BuildError, features, library_file
from batchloom.models.layers.native.check import check
from batchloom.models.layers.native.signatures import declare

logger = logging.getLogger(__name__)
SWITCH = "BATCHLOOM_KERNELS"
"""An environment variable: 0 leaves all to plain torch."""
_LOADING = Lock()


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
    try:
        library = ctypes.CDLL(str(library_file(cache_home() / "kernels")))
    except OSError:  # no home, or one that cannot be written to, or that forbids to execute
        with tempfile.TemporaryDirectory() as folder:
            library = ctypes.CDLL(str(library_file(Path(folder))))
    declare(library)
    check(library, "avx512_bf16" in features())
    return library
