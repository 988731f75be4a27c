"""A sample is told by a file's path and the rows' numbers, and a mask holds which rows are chosen."""

from dataclasses import replace

import numpy as np
import pytest

from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.selection.mask import Mask
from batchloom.pipelines.selection.sample import sampled
from batchloom.pipelines.selection.selection import Selection


def test_a_row_is_in_the_sample_wherever_its_span_begins() -> None:
    whole = sampled("a/b.parquet", 0, 1000, 0.3)
    pieces = [sampled("a/b.parquet", start, start + 7, 0.3) for start in range(0, 994, 7)]
    assert np.concatenate(pieces).tolist() == whole[:994].tolist()
    selection = Selection(sample=0.3)
    spans = [Span("a/b.parquet", "", 10, 20), Span("c.parquet", "", 0, 5)]
    expected = [*whole[10:20], *sampled("c.parquet", 0, 5, 0.3)]
    assert selection.sampled(spans).tolist() == expected


def test_the_sample_is_the_same_in_every_version() -> None:
    assert np.flatnonzero(sampled("news/2024.jsonl", 0, 200, 0.05)).tolist() == [
        44,
        77,
        97,
        112,
        117,
        137,
        174,
        177,
        181,
        194,
    ]


@pytest.mark.parametrize("share", [0.001, 0.01, 0.5, 0.9])
def test_the_share_is_about_right_and_larger_ones_hold_smaller_ones(share) -> None:
    flags = sampled("a", 0, 200_000, share)
    assert abs(flags.mean() - share) < 4 * (share * (1 - share) / 200_000) ** 0.5
    assert not (sampled("a", 0, 200_000, share / 2) & ~flags).any()
    assert sampled("a", 0, 9, 1.0).all()


def test_files_have_unlike_samples() -> None:
    by_file = np.array([sampled(f"{number}.parquet", 0, 8, 0.3) for number in range(4000)])
    assert np.abs(by_file.mean(axis=0) - 0.3).max() < 0.03
    assert np.abs(np.corrcoef(by_file.T.astype(float)) - np.eye(8)).max() < 0.07


def test_a_mask_holds_its_rows() -> None:
    flags = sampled("a", 0, 131_072, 0.01)
    mask = Mask.of(flags)
    assert (mask.flags == flags).all()
    assert mask.num_chosen == flags.sum()
    assert len(mask.bits) < 4096
    joined = Mask.joined([mask, Mask.of(np.zeros(3, bool)), Mask.of(np.ones(2, bool))])
    assert joined.rows[-2:].tolist() == [131_075, 131_076]
    assert Mask.of(np.zeros(0, bool)).num_chosen == 0


def test_a_mask_that_was_edited_is_no_mask() -> None:
    mask = Mask.of(np.ones(9, bool))
    for odd in (replace(mask, num_rows=20), replace(mask, bits="eJz"), replace(mask, bits="!")):
        with pytest.raises(ValueError, match="its mask of chosen rows"):
            _ = odd.flags
