"""Live rows and rows of a file, one by the other, against counting."""

from hypothesis import given
from hypothesis import strategies as st

from batchloom.pipelines.tables.deleted import Deleted


@given(num_rows=st.integers(1, 30), gone=st.sets(st.integers(0, 29)), data=st.data())
def test_live_rows_lie_where_counting_finds_them(num_rows: int, gone: set[int], data: st.DataObject) -> None:
    gone = {row for row in gone if row < num_rows}
    live = [row for row in range(num_rows) if row not in gone]
    deleted = Deleted(sorted(gone))
    cuts = sorted(data.draw(st.sets(st.integers(0, num_rows))))
    groups = [stop - start for start, stop in zip([0, *cuts], [*cuts, num_rows], strict=True)]
    expected, first = [], 0
    for size in groups:
        expected.append(sum(first <= row < first + size for row in live))
        first += size
    assert deleted.live_counts(groups) == expected
    if not live:
        return
    start = data.draw(st.integers(0, len(live) - 1))
    stop = data.draw(st.integers(start + 1, len(live)))
    for one in (deleted, deleted.within(start, stop)):
        assert [row for low, high in one.ranges_of(start, stop) for row in range(low, high)] == live[start:stop]
        assert one.row_of(start) == live[start]
        assert one.live(live[start], live[stop - 1] + 1) == (start, stop)


def test_other_deleted_rows_are_another_digest() -> None:
    assert Deleted([1, 2]).digest == Deleted((1, 2)).digest != Deleted([1, 3]).digest
