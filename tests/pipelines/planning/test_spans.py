from hypothesis import given, settings
from hypothesis import strategies as st

from batchloom.pipelines.planning.spans import Coverage, Span, common, outside, starts_of, within

spans = st.builds(
    lambda shard, start, length: Span(shard, "v", start, start + length),
    st.sampled_from("ab"),
    st.integers(0, 30),
    st.integers(1, 10),
)
ranges = st.lists(st.booleans(), max_size=40).map(
    lambda bits: [(i, i + 1) for i, bit in enumerate(bits) if bit]  # neighbours stay apart: both forms are ranges
)


def rows(found) -> set[int]:
    return {row for start, stop in found for row in range(start, stop)}


@settings(deadline=None)  # other processes decide the time
@given(st.lists(spans, max_size=20), spans)
def test_coverage_is_a_set_of_rows(added: list[Span], asked: Span) -> None:
    coverage, covered = Coverage(), set()
    for span in added:
        own = {(span.shard, row) for row in range(span.start, span.stop)}
        assert coverage.add(span) == (not own & covered)
        if not own & covered:
            covered |= own
    missing = coverage.missing(asked)
    assert rows(missing) == {row for row in range(asked.start, asked.stop) if (asked.shard, row) not in covered}
    assert missing == sorted(missing)
    assert coverage.num_rows("a") == len([row for shard, row in covered if shard == "a"])


@settings(deadline=None)  # other processes decide the time
@given(ranges, ranges)
def test_what_is_common_and_what_is_outside(one, other) -> None:
    assert rows(common(one, other)) == rows(one) & rows(other)
    assert rows(outside(40, one)) == set(range(40)) - rows(one)


@settings(deadline=None)  # other processes decide the time
@given(st.lists(spans, min_size=1, max_size=4), ranges)
def test_rows_within_spans(of: list[Span], chosen) -> None:
    every = [(span.shard, row) for span in of for row in range(span.start, span.stop)]
    got = [(span.shard, row) for span in within(of, starts_of(of), chosen) for row in range(span.start, span.stop)]
    assert got == [every[row] for row in sorted(rows(chosen)) if row < len(every)]


def test_a_few_rows_of_many_spans_are_found_without_going_through_all_of_them() -> None:
    """8,192 shards of one row, a unit each, took 11 s of processor time: the square of their number."""

    class Looked(list[Span]):
        num_looks = 0

        def __getitem__(self, place):
            self.num_looks += 1
            return super().__getitem__(place)

        def __iter__(self):
            raise AssertionError("all are gone through")

    many = [Span(f"{number}", "v", 0, 1) for number in range(10_000)]
    looked = Looked(many)
    starts = starts_of(many)
    assert list(within(looked, starts, [(start, start + 10) for start in range(0, 10_000, 100)])) == [
        many[row] for start in range(0, 10_000, 100) for row in range(start, start + 10)
    ]
    assert looked.num_looks <= 1100


def test_a_few_ranges_of_many_are_found_without_a_copy_of_all() -> None:
    """Rows with errors of a part, in units of a row, were copied for each unit."""

    class Looked(list[tuple[int, int]]):
        num_looks = 0

        def __getitem__(self, place):
            assert isinstance(place, int), "a slice is a copy"
            self.num_looks += 1
            return super().__getitem__(place)

    looked = Looked((row, row + 1) for row in range(0, 20_000, 2))
    assert [row for low in range(0, 20_000, 200) for row in rows(common([(low, low + 2)], looked))] == [
        *range(0, 20_000, 200)
    ]
    assert looked.num_looks < 3000
