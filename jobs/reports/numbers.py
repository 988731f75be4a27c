"""Sums over many values: counts of texts in bounded memory, histograms with round edges. It knows no output."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom.jobs.reports.blocks import Histogram

Numbers = np.ndarray[Any, np.dtype[Any]]

MAX_BINS = 40
MAX_TEXTS = 100_000  # different ones that are counted at once: 20 MB of short texts
KEPT_CHARACTERS = 160  # of a counted text; what it goes on with is told by a hash
FAR = 3.0  # times the 99th percentile: values beyond it are told of, not drawn


class Tally:
    """Counts texts. Of more than MAX_TEXTS different ones the rare are forgotten, and counts are then lower bounds."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.total = 0
        self.is_exact = True

    def add(self, texts: pa.ChunkedArray | pa.Array) -> None:
        """Count texts; null is none."""
        found = pc.value_counts(texts.drop_null())
        for text, count in zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True):
            self.total += count
            self.counts[text if len(text) <= KEPT_CHARACTERS else _shortened(text)] += count
        if len(self.counts) > MAX_TEXTS:
            self.is_exact = False
            self.counts = Counter(dict(self.counts.most_common(MAX_TEXTS // 2)))

    def most_common(self, most: int) -> list[tuple[str, int]]:
        """Return the most frequent texts and their counts; of equally frequent ones in the order of the alphabet."""
        ordered = sorted(self.counts.items(), key=lambda one: (-one[1], one[0]))
        return [(text.partition("\0")[0], count) for text, count in ordered[:most]]


def _shortened(text: str) -> str:
    return f"{text[:KEPT_CHARACTERS]}…\0{hash(text)}"


def histogram(
    title: str,
    unit: str,
    values: Numbers | Sequence[float],
    counted: str = "rows",
    within: tuple[float, float] | None = None,
) -> Histogram | None:
    """Count values in at most about MAX_BINS bins with round edges; None where there are none.

    `within`: a range that is known, such as that of probabilities.
    """
    values = np.asarray(values)
    if not len(values):
        return None
    is_whole = values.dtype.kind in "iu"
    values = values.astype(np.float64)
    smallest, largest = float(values.min()), float(values.max())
    low, high = within or (min(0.0, smallest) if is_whole else smallest, largest)
    far = float(np.quantile(values, 0.99))
    if within is None and is_whole and largest > FAR * max(far, 10.0):
        high = far
    width = round_width(((high - low) or abs(high) or 1.0) / MAX_BINS, is_whole)
    first = math.floor(low / width + 1e-9)
    last = max(math.ceil(high / width - 1e-9) if within else math.floor(high / width + 1e-9) + 1, first + 1)
    edges = np.round(np.arange(first, last + 1) * width, 12)
    is_beyond = values >= edges[-1] if within is None else np.zeros(len(values), bool)
    counts, _ = np.histogram(values[~is_beyond], edges)
    return Histogram(
        title=title,
        unit=unit,
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        counted=counted,
        median=float(np.median(values)),
        smallest=smallest,
        largest=largest,
        beyond=int(is_beyond.sum()),
    )


def round_width(least: float, is_whole: bool = True) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that is at least `least`, for round bin edges; of numbers that
    are not whole also 0.5, 0.2, 0.1, ..."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    if is_whole:
        power = max(power, 1.0)
    width = next(width for width in (power, 2 * power, 5 * power, 10 * power) if width >= least * (1 - 1e-9))
    return float(f"{width:.6g}")


def first_of(lists: pa.ChunkedArray) -> pa.Array:
    """Return the first item of each list; null where it is empty or null."""
    whole = lists.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], lists.type)
    offsets = whole.offsets.to_numpy()
    has_any = np.asarray(whole.is_valid().to_numpy(zero_copy_only=False)) & (offsets[1:] > offsets[:-1])
    return whole.values.take(pa.array(offsets[:-1], pa.int64(), mask=~has_any))


def numbers(column: pa.ChunkedArray | pa.Array) -> Numbers:
    """Return the values of a column that are not null."""
    valid = column.drop_null()
    values: Numbers = valid.to_numpy() if isinstance(valid, pa.ChunkedArray) else valid.to_numpy(zero_copy_only=False)
    return values


def joined(arrays: Iterable[Numbers]) -> Numbers:
    """Return arrays one after the other."""
    listed = list(arrays)
    return np.concatenate(listed) if listed else np.zeros(0)
