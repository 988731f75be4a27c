from itertools import groupby, pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError
from batchloom.pipelines.planning.shards import Shard, find_shards
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.planning.units import Size, cut, num_units, parts_of, units_of


def shard_of(row_groups: list[int], name: str = "a.parquet", bytes_per_row: int = 1) -> Shard:
    sizes = tuple(rows * bytes_per_row for rows in row_groups)
    return Shard(Source(name, f"/in/{name}", 1, "v"), tuple(row_groups), sizes)


def rows_of(spans) -> list[tuple[str, int]]:
    return [(span.shard, row) for span in spans for row in range(span.start, span.stop)]


shapes = st.lists(st.lists(st.integers(0, 40), max_size=6), max_size=5)


@settings(deadline=None)  # other processes decide the time
@given(shapes, st.integers(1, 60), st.integers(1, 20), st.integers(1, 30))
def test_parts_and_units_cover_every_row_once_and_are_small_enough(shapes, rows_per_part, rows_per_unit, room) -> None:
    shards = {f"{i}.parquet": shard_of(shape, f"{i}.parquet", bytes_per_row=i) for i, shape in enumerate(shapes)}
    parts = list(parts_of(shards.values(), Size(rows_per_part, 10 * room)))
    every_row = [(name, row) for name, shard in shards.items() for row in range(shard.num_rows)]
    assert [row for part in parts for row in rows_of(part.spans)] == every_row
    assert all(0 < part.num_rows <= rows_per_part for part in parts)
    size = Size(rows_per_unit, room)
    for part in parts:
        units = list(units_of(part, [(0, part.num_rows)], shards, size))
        assert [row for unit in units for row in rows_of(unit.spans)] == rows_of(part.spans)
        assert all(0 < unit.num_rows <= rows_per_unit for unit in units)
        assert len(units) == num_units(part, shards, size)
        for unit in units:
            num_bytes = sum(int(span.shard[0]) * span.num_rows for span in unit.spans)
            assert num_bytes <= room + 8 * rows_per_unit or unit.num_rows == 1  # rows of a group have its average
            assert [unit.row(number) for number in range(unit.num_rows)] == rows_of(unit.spans)
            assert unit.is_whole == (len(units) == 1)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(1, 20),
    st.lists(st.booleans(), min_size=240, max_size=240),
)
def test_units_of_what_is_missing_are_those_of_the_whole_or_of_what_is_left_of_them(groups, most, is_missing) -> None:
    shards = {"a.parquet": shard_of(groups)}
    (part,) = parts_of(shards.values(), Size(10**6, 10**9))
    size = Size(most, 10**9)
    rows = [row for row in range(part.num_rows) if is_missing[row]]
    missing = list(ranges_of(rows))
    units = list(units_of(part, missing, shards, size))
    assert sorted(row for unit in units for low, high in unit.ranges for row in range(low, high)) == rows
    assert all(unit.num_rows <= most for unit in units)
    whole = {unit.ranges for unit in units_of(part, [(0, part.num_rows)], shards, size)}
    untouched = {ranges for ranges in whole if all(is_missing[row] for low, high in ranges for row in range(low, high))}
    assert untouched <= {unit.ranges for unit in units}


def ranges_of(rows):
    for _, run in groupby(enumerate(rows), lambda pair: pair[1] - pair[0]):
        members = [row for _, row in run]
        yield members[0], members[-1] + 1


@given(st.lists(st.integers(1, 40), max_size=8), st.integers(1, 20))
def test_a_cut_lies_in_one_row_group_or_holds_whole_ones(row_groups: list[int], most: int) -> None:
    starts = [sum(row_groups[:i]) for i in range(len(row_groups) + 1)]
    for start, stop in cut([(rows, 1) for rows in row_groups], Size(most, 10**9)):
        inside = any(a <= start and stop <= b for a, b in pairwise(starts))
        assert inside or (start in starts and stop in starts)


def test_the_example_of_the_docstring_is_true() -> None:
    pieces = [(rows, 1) for rows in (3, 3, 3, 20)]
    assert list(cut(pieces, Size(8, 100))) == [(0, 6), (6, 9), (9, 15), (15, 22), (22, 29)]
    assert list(cut([(3, 50), (3, 50), (4, 300)], Size(8, 100))) == [(0, 6), (6, 7), (7, 8), (8, 10)]


def test_small_shards_share_a_part_and_a_large_one_shares_none() -> None:
    shards = [shard_of([2], "a"), shard_of([3], "b"), shard_of([0], "c"), shard_of([20], "d"), shard_of([1], "e")]
    told = [[(s.shard, s.start, s.stop) for s in part.spans] for part in parts_of(shards, Size(10, 10**9))]
    assert told == [[("a", 0, 2), ("b", 0, 3)], [("d", 0, 10)], [("d", 10, 20)], [("e", 0, 1)]]


def test_a_part_is_another_one_when_its_file_has_changed() -> None:
    before = Shard(Source("a", "p", 1, "1"), (5,), (5,))
    after = Shard(Source("a", "p", 1, "2"), (5,), (5,))
    most = Size(9, 9)
    assert [part.id for part in parts_of([before], most)] != [part.id for part in parts_of([after], most)]


def write(path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_a_moved_dataset_keeps_its_unit_names(tmp_path) -> None:
    for folder in ("one", "two"):
        write(tmp_path / folder / "x" / "a.parquet", pa.table({"t": ["x"]}))
        write(tmp_path / folder / "y" / "a.parquet", pa.table({"t": ["x"]}))
    names = [
        [shard.name for shard in find_shards(InputConfig(paths=(str(tmp_path / folder),)))[0]]
        for folder in ("one", "two")
    ]
    assert names[0] == names[1] == ["x/a.parquet", "y/a.parquet"]


def test_a_file_named_by_two_patterns_is_read_once(tmp_path) -> None:
    write(tmp_path / "a.parquet", pa.table({"t": ["x"]}))
    shards, _ = find_shards(InputConfig(paths=(str(tmp_path), str(tmp_path / "*.parquet"))))
    assert len(shards) == 1


def test_hidden_folders_of_a_dataset_are_not_input(tmp_path) -> None:
    write(tmp_path / "a.parquet", pa.table({"t": ["x"]}))
    write(tmp_path / "_batchloom" / "b.parquet", pa.table({"t": ["x"]}))
    assert len(find_shards(InputConfig(paths=(str(tmp_path),)))[0]) == 1


def test_all_unreadable_files_are_named_at_once(tmp_path) -> None:
    write(tmp_path / "a.parquet", pa.table({"t": ["x"]}))
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    (tmp_path / "c.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 of 3 input files(.|\n)*b\.parquet(.|\n)*c\.parquet"):
        find_shards(InputConfig(paths=(str(tmp_path),)))


@pytest.mark.parametrize("pattern", ["nothing/*.parquet", "missing.parquet", "empty"])
def test_a_path_that_matches_nothing_is_named(tmp_path, pattern: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="matches no file"):
        find_shards(InputConfig(paths=(str(tmp_path / pattern),)))


def names_of(*paths) -> list[str]:
    return [shard.name for shard in find_shards(InputConfig(paths=tuple(map(str, paths))))[0]]


def test_linked_files_are_input_as_files_are(tmp_path) -> None:
    """A listing calls a link "other": such shards were left out without a word, and their rows were lost."""
    write(tmp_path / "blobs" / "1", pa.table({"t": ["x"]}))
    write(tmp_path / "in" / "a.parquet", pa.table({"t": ["x"]}))
    (tmp_path / "in" / "b.parquet").symlink_to(tmp_path / "blobs" / "1")
    assert names_of(tmp_path / "in") == names_of(tmp_path / "in" / "*") == ["a.parquet", "b.parquet"]
    (tmp_path / "in" / "c.parquet").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"1 of 3 input files cannot be read:\n.*c\.parquet"):
        names_of(tmp_path / "in")
    write(tmp_path / "lines" / "a.parquet", pa.table({"t": ["x"]}))
    (tmp_path / "lines" / "a.jsonl").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"1 of 1 input files cannot be read:\n.*a\.jsonl"):
        find_shards(InputConfig(paths=(str(tmp_path / "lines"),), format="jsonl"))


def test_a_dataset_that_a_glob_matches_is_read_whole(tmp_path) -> None:
    write(tmp_path / "a.parquet", pa.table({"t": ["x"]}))
    write(tmp_path / "b.parquet" / "part-0.parquet", pa.table({"t": ["x"]}))
    assert names_of(tmp_path / "*.parquet") == ["a.parquet", "b.parquet/part-0.parquet"]


def test_all_paths_that_match_nothing_are_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"one' matches no file\.\nInput path '.*two/\*' matches no file\. Check"):
        names_of(tmp_path / "one", tmp_path / "two/*")


def test_paths_in_several_stores_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"and 'memory://x' lie in different stores"):
        names_of(tmp_path, "memory://x")


def test_the_name_of_a_part_fits_into_a_filesystem() -> None:
    name = "\N{CJK UNIFIED IDEOGRAPH-8CC7}" * 82 + ".parquet"
    for others in ([], [shard_of([1], f"{index}") for index in range(4000)]):
        part = next(parts_of([shard_of([2**40], name), *others], Size(2**41, 2**60)))
        assert len(part.name("f" * 64).encode()) <= 255
