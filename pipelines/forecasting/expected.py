"""An expected total, from a sample of rows, and how far off it may be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchloom.pipelines.forecasting.places import Place

Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Expected:
    """A sum over all rows of a job."""

    total: float
    standard_error: float
    """0 where all rows were looked at."""

    @property
    def margin(self) -> float:
        """Half of the interval that holds the true total in 95 of 100 samples, as a share of the expected one."""
        return 1.96 * self.standard_error / self.total if self.total else 0.0


def exactly(total: float) -> Expected:
    """Return a total that is known."""
    return Expected(float(total), 0.0)


def expected(values: Values, places: Sequence[Place], sizes: Values | None = None, total_size: float = 0.0) -> Expected:
    """Scale `values` (one for each row of the places, in their order) to all rows.

    Each place stands for its stretch. The error is that of neighbours' differences (Wolter, An investigation of some
    estimators of variance for systematic sampling, 1984, v2): rows that are alike in a region do not count as spread.

    `sizes`: of the same rows, where their sum over all rows is known, `total_size`. What varies with the size is no
    error then, but only what is left of it (the regression estimator; Cochran, Sampling Techniques, 7.1).
    """
    if not len(values):
        return Expected(0.0, 0.0)
    if len(values) == sum(place.num_stretch_rows for place in places):
        return exactly(values.sum())
    if sizes is None or not sizes.any():
        return _scaled(values, places)
    of_rows = np.array([place.num_stretch_rows / place.num_rows for place in places for _ in place.rows])
    apart = [one - np.average(one, weights=of_rows) for one in (sizes, values)]
    spread = (of_rows * apart[0] ** 2).sum()
    slope = (of_rows * apart[0] * apart[1]).sum() / spread if spread else 0.0
    left = _scaled(values - slope * sizes, places)
    return Expected(left.total + slope * total_size, left.standard_error)


def _scaled(values: Values, places: Sequence[Place]) -> Expected:
    num_rows = np.array([place.num_rows for place in places])
    stands_for = np.array([place.num_stretch_rows for place in places])
    sums = np.add.reduceat(values, np.cumsum(num_rows) - num_rows)
    totals = sums * stands_for / num_rows
    unseen = 1 - num_rows.sum() / stands_for.sum()
    if len(places) == 1:
        return Expected(float(totals[0]), float(abs(totals[0]) * unseen))
    variance = unseen * len(places) / (2 * (len(places) - 1)) * (np.diff(totals) ** 2).sum()
    return Expected(float(totals.sum()), float(np.sqrt(variance)))


def mean(values: Values, of_all: float) -> Expected:
    """Scale values of rows that were drawn by chance to `of_all` rows."""
    if not len(values):
        return Expected(0.0, 0.0)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else abs(values[0])
    unseen = max(0.0, 1 - len(values) / of_all) if of_all else 0.0
    return Expected(float(values.mean() * of_all), float(error * of_all * np.sqrt(unseen)))
