"""A sample is a share of a file's rows: which ones is told by the file's path and the rows' numbers alone.

A larger share holds the rows of a smaller one.
"""

import hashlib

import numpy as np

from batchloom.pipelines.selection.mask import Flags

ALL = 1 << 64


def sampled(shard: str, start: int, stop: int, share: float) -> Flags:
    """Return which of the rows `[start, stop)` of a shard are in the sample. `share` is between 0 and 1."""
    key = np.uint64(int.from_bytes(hashlib.sha256(shard.encode(errors="surrogateescape")).digest()[:8], "little"))
    if (most := int(share * ALL)) >= ALL:
        return np.ones(stop - start, bool)
    numbers = np.arange(start, stop, dtype=np.uint64)
    return _mixed(numbers * np.uint64(0x9E3779B97F4A7C15) + key) < np.uint64(most)


def _mixed(x: "np.ndarray[tuple[int], np.dtype[np.uint64]]") -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    """Return equally distributed numbers for unlike ones: the finalizer of SplitMix64 (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
