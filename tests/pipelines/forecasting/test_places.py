"""Places are of the input, spread over it, and few where each of them is dear."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchloom.pipelines.forecasting import places
from batchloom.pipelines.forecasting.expected import Values, expected, mean
from batchloom.pipelines.forecasting.places import is_read_whole, places_among, places_of
from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.planning.source import Source


def shards_of(groups: list[list[int]], row_bytes: int = 100) -> list[Shard]:
    return [
        Shard(
            Source(name=f"{number}", path=f"{number}", size=1, version="v"),
            row_groups=rows,
            read_bytes=[row_bytes * one for one in rows],
        )
        for number, rows in enumerate(groups)
    ]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 90), max_size=4), min_size=1, max_size=30), st.integers(1, 900), st.booleans())
def test_places_are_of_the_input_and_do_not_overlap(groups: list[list[int]], num_rows: int, is_dear: bool) -> None:
    shards = shards_of(groups, row_bytes=1 << 25 if is_dear else 1)
    total = sum(map(sum, groups))
    found = list(places_of(shards, num_rows))
    rows = [(span.shard, row) for place in found for span in place.spans for row in range(span.start, span.stop)]
    assert len(rows) == len(set(rows)) == min(num_rows, total)
    assert rows == sorted(rows, key=lambda row: (int(row[0]), row[1]))
    assert all(0 <= row < shards[int(shard)].num_rows for shard, row in rows)
    assert sum(place.num_stretch_rows for place in found) == total


def test_each_row_is_a_place_where_all_row_groups_are_small() -> None:
    shards = shards_of([[500, 500]] * 10)
    assert is_read_whole(shards)
    found = list(places_among(10_000, 1000))
    assert {place.num_rows for place in found} == {1}
    assert {place.num_stretch_rows for place in found} == {10}
    assert [place.rows.start // 10 for place in found] == list(range(1000))


@pytest.mark.parametrize(
    ("groups", "row_bytes"),
    [([[100_000] * 4] * 40, 10_000), ([[100]] * 5000, 10)],
    ids=["large row groups", "many small ones"],
)
def test_few_row_groups_are_fetched_where_all_are_too_much(groups: list[list[int]], row_bytes: int) -> None:
    shards = shards_of(groups, row_bytes)
    assert not is_read_whole(shards)
    found = list(places_of(shards, 4000))
    assert sum(place.num_rows for place in found) == 4000
    groups_of = {(span.shard, span.start // groups[0][0]) for place in found for span in place.spans}
    size = groups[0][0] * row_bytes
    assert places.LEAST_PLACES <= len(groups_of) <= 2 * places.MOST_GROUPS, "a place may lie in two"
    assert len(found) <= max(places.LEAST_PLACES, places.MOST_BYTES // size)


def corpus(kind: str, chance: np.random.Generator, num_rows: int) -> Values:
    return {
        "equal": lambda: np.full(num_rows, 7.0),
        "lognormal": lambda: chance.lognormal(4, 0.8, num_rows).round(),
        "sorted": lambda: np.sort(chance.lognormal(4, 0.8, num_rows)).round(),
        "two halves": lambda: np.repeat(chance.permutation([20.0, 400.0]), num_rows // 2),
        "rare": lambda: (chance.random(num_rows) < 0.05) * 1.0,
    }[kind]()


@pytest.mark.parametrize("num_places", [None, 40], ids=["rows alone", "places of several rows"])
@pytest.mark.parametrize("kind", ["equal", "lognormal", "sorted", "two halves", "rare"])
def test_the_interval_holds_the_true_total(kind: str, num_places: int | None) -> None:
    """In 95 of 100 samples, where the estimate is not biased and its error is neither too small nor absurdly large."""
    chance = np.random.default_rng(1)
    held, margins, errors = 0, [], []
    for _ in range(100):
        lengths = corpus(kind, chance, 20_000)
        found = list(places_among(20_000, 1000, num_places))
        said, true = expected(lengths[[row for place in found for row in place.rows]], found), lengths.sum()
        held += abs(said.total - true) <= said.margin * said.total + 1e-6
        margins.append(said.margin)
        errors.append(abs(said.total / true - 1))
    assert held >= 85, f"{held} of 100 intervals held the total"
    if kind != "two halves":  # the one jump counts as spread
        assert np.mean(margins) <= 8 * np.mean(errors) + 1e-9, "an interval that says nothing"


def test_known_sizes_make_the_interval_small_and_it_still_holds() -> None:
    """Tokens vary as texts' sizes do, but for long texts, which are truncated."""
    chance, held, margins, without = np.random.default_rng(3), 0, [], []
    for _ in range(100):
        sizes = np.sort(chance.lognormal(4, 1.2, 20_000).round() + 1)
        tokens = np.minimum((sizes / chance.normal(4.5, 0.5, 20_000).clip(2)).round(), 100)
        found = list(places_among(20_000, 1000))
        rows = [row for place in found for row in place.rows]
        said = expected(tokens[rows], found, sizes[rows], sizes.sum())
        held += abs(said.total - tokens.sum()) <= said.margin * said.total
        margins.append(said.margin)
        mixed = chance.permutation(tokens)
        without.append(expected(mixed[rows], found).margin)
    assert held >= 88
    assert np.mean(margins) < 0.015, "of 20,000 rows, 1,000 are enough"
    assert np.mean(margins) < np.mean(without) / 3


def test_a_count_over_all_rows_is_exact() -> None:
    found = list(places_of(shards_of([[30, 20], [50]]), 1000))
    said = expected(np.arange(100.0), found)
    assert said.total == pytest.approx(np.arange(100).sum())
    assert said.standard_error == said.margin == 0


def test_an_empty_sample_and_one_of_a_single_row_are_no_division_by_zero() -> None:
    assert expected(np.zeros(0), []).total == 0
    (only,) = places_of(shards_of([[10]]), 1)
    assert expected(np.array([3.0]), [only]).total == 30
    assert expected(np.array([3.0]), [only]).standard_error > 0
    assert mean(np.zeros(0), 10).total == mean(np.zeros(3), 0).total == 0


def test_a_mean_of_rows_drawn_by_chance_is_scaled_and_its_interval_holds() -> None:
    chance, held = np.random.default_rng(2), 0
    for _ in range(100):
        lengths = chance.lognormal(3, 0.5, 5000)
        said = mean(chance.choice(lengths, 400, replace=False), 5000)
        held += abs(said.total - lengths.sum()) <= said.margin * said.total
    assert held >= 88
    assert mean(np.array([2.0, 4.0]), 2).standard_error == 0, "all rows were seen"
