"""Any ranges of any shard come out as its rows, from exactly the bytes that hold them, and in bounded memory."""

import io
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchloom.pipelines.formats import decode
from batchloom.pipelines.formats.decode import decoded
from batchloom.pipelines.formats.footer import leaves_of
from batchloom.pipelines.planning.spans import Range

COLUMNS = ("n", "names", "text", "words")


class Counted(io.BytesIO):
    """A patient file that counts."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.size = len(content)
        self.ranges: list[Range] = []

    def read(self, size: int | None = -1) -> bytes:
        start, content = self.tell(), super().read(size)
        self.ranges.append((start, start + len(content)))
        return content

    @property
    def num_bytes(self) -> int:
        return sum(stop - start for start, stop in self.ranges)


def shard(row_groups: list[int], **options: Any) -> tuple[pa.Table, bytes]:
    """A table and its file: nested columns, a column of few values, and one that is nobody's."""
    rows = range(sum(row_groups))
    table = pa.table(
        {
            "n": pa.array(rows, pa.int64()),
            "unwanted": [f"{row * 7919 % 10007}-" * 40 for row in rows],
            "names": pa.array([{"first": f"a{row % 5}", "last": None if row % 3 else "z"} for row in rows],
                              pa.struct([("first", pa.string()), ("last", pa.string())])),
            "text": pa.array([f"text {row} " * (row % 30) for row in rows], pa.string()),
            "words": pa.array([["w"] * (row % 4) for row in rows], pa.list_(pa.string())),
        }
    )  # fmt: skip
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        for start, stop in pairwise(accumulate(row_groups, initial=0)):
            writer.write_table(table.slice(start, stop - start), row_group_size=max(stop - start, 1))
    return table, sink.getvalue().to_pybytes()


@st.composite
def shards_and_ranges(draw: st.DrawFn) -> tuple[list[int], list[Range]]:
    row_groups = draw(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(sum))
    bounds = sorted(draw(st.sets(st.integers(0, sum(row_groups)), min_size=2, max_size=10)))
    ranges = list(pairwise(bounds))
    chosen = draw(st.lists(st.booleans(), min_size=len(ranges), max_size=len(ranges)).filter(any))
    return row_groups, [one for one, is_chosen in zip(ranges, chosen, strict=True) if is_chosen]


@pytest.mark.parametrize("limit", [1 << 30, 3000, 1], ids=["all at once", "some at once", "streamed"])
@pytest.mark.parametrize("knows_footer", [True, False])
@settings(deadline=None, max_examples=15)
@given(drawn=shards_and_ranges(), columns=st.sets(st.sampled_from(COLUMNS)).map(sorted))
def test_each_range_has_its_rows_from_no_more_bytes_than_hold_them(
    limit: int, knows_footer: bool, drawn: tuple[list[int], list[Range]], columns: list[str]
) -> None:
    row_groups, ranges = drawn
    table, content = shard(row_groups, use_dictionary=["names.first", "text"])
    metadata = pq.read_metadata(pa.BufferReader(content))
    file = Counted(content)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(decode, "FETCHED_BYTES", limit)
        patched.setattr(decode, "PIECE_BYTES", 100)
        patched.setattr(decode, "SMALLEST_PIECE", 50)
        patched.setattr(decode, "BATCH_ROWS", 7)
        got = list(decoded(file, columns, ranges, metadata.serialized_size + 8 if knows_footer else None))  # type: ignore[arg-type]
    assert [one.num_rows for one in got] == [stop - start for start, stop in ranges]
    for one, (start, stop) in zip(got, ranges, strict=True):
        assert one.to_pylist() == table.select(columns).slice(start, stop - start).to_pylist() or not columns
    footer, *chunks = file.ranges
    if knows_footer:
        assert footer == (len(content) - metadata.serialized_size - 8, len(content))
    wanted = sum(wanted_chunks(metadata, columns, ranges, row_groups))
    assert sum(stop - start for start, stop in chunks) <= wanted * 17 / 16
    assert all(one[1] <= other[0] for one, other in pairwise(sorted(chunks)))  # no byte twice


def wanted_chunks(
    metadata: pq.FileMetaData, columns: list[str], ranges: list[Range], row_groups: list[int]
) -> list[int]:
    leaves = leaves_of(metadata, columns)
    groups = [
        number
        for number, (first, last) in enumerate(pairwise(accumulate(row_groups, initial=0)))
        if any(start < last and first < stop for start, stop in ranges)
    ]
    return [metadata.row_group(group).column(leaf).total_compressed_size for group in groups for leaf in leaves]


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 50)), min_size=1, max_size=30))
def test_near_ranges_are_joined_as_long_as_what_lies_between_them_is_little(drawn: list[tuple[int, int]]) -> None:
    ranges, position = [], 0
    for gap, length in drawn:
        ranges.append((position + gap, position + gap + length))
        position += gap + length
    joined = decode._coalesced(ranges)
    wanted = sum(stop - start for start, stop in ranges)
    assert wanted <= sum(stop - start for start, stop in joined) <= wanted * 17 / 16
    assert all(any(start <= one and other <= stop for start, stop in joined) for one, other in ranges)
    assert all(one[1] < other[0] for one, other in pairwise(joined))  # neighbours are one


def test_a_large_row_group_is_not_held_in_memory() -> None:
    """The row groups of a stretch were fetched whole, and decoded 4096 rows at a time, whatever these had."""
    text = "".join(chr(0x100 + number * 7 % 1000) for number in range(10_000))
    table = pa.table({"text": [f"{row} {text}" for row in range(6000)]})  # 120 MB
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, row_group_size=len(table))
    file = Counted(sink.getvalue().to_pybytes())
    del table, sink
    before, most = pa.total_allocated_bytes(), 0
    for number, rows in enumerate(decoded(file, ["text"], [(row, row + 100) for row in range(0, 6000, 100)])):  # type: ignore[arg-type]
        assert rows["text"][5].as_py().startswith(f"{100 * number + 5} ")
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 40 << 20
    assert max(stop - start for start, stop in file.ranges) < 24 << 20  # a page of 1024 texts, of which none is cut
    assert file.num_bytes < 1.01 * file.size


def test_a_text_that_is_repeated_is_not_decoded_for_thousands_of_rows_at_once() -> None:
    """A file of 33 kB, of one text of 700 kB in 3,200 rows, took 3.5 GB: 4,096 rows were decoded at a time."""
    text = "river " * 20_000  # 120 kB
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": pa.array([text] * 4000).dictionary_encode()}), sink, store_schema=False)
    file = Counted(sink.getvalue().to_pybytes())
    before, most = pa.total_allocated_bytes(), 0
    for rows in decoded(file, ["text"], [(row, row + 50) for row in range(0, 4000, 50)]):  # type: ignore[arg-type]
        assert set(rows["text"].to_pylist()) == {text}
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 160 << 20  # of 480


def test_a_shard_that_has_fewer_rows_than_were_planned_is_damaged() -> None:
    _, content = shard([10, 10])
    with pytest.raises(EOFError, match="it ends at row 20"):
        list(decoded(Counted(content), ["n"], [(5, 8), (15, 21)]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content", [b"", b"x", b"PAR1", b"no Parquet at all", b"PAR1" + bytes(20) + b"\xff\xff\xff\x7fPAR1"]
)
def test_what_is_no_parquet_file_is_told(content: bytes) -> None:
    with pytest.raises(pa.ArrowInvalid):
        list(decoded(Counted(content), ["n"], [(0, 1)]))  # type: ignore[arg-type]
