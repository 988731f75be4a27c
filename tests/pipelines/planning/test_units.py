from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError
from batchloom.pipelines.planning.shards import Shard, find_shards
from batchloom.pipelines.planning.units import cut


def shard_of(row_groups: list[int]) -> Shard:
    return Shard(path="/in/a.parquet", name="a.parquet", size=1, version="v", row_groups=tuple(row_groups))


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 20))
def test_units_cover_every_row_once_and_are_small_enough(row_groups: list[int], rows_per_unit: int) -> None:
    units = list(cut(shard_of(row_groups), rows_per_unit))
    rows = [row for unit in units for row in range(unit.start, unit.stop)]
    assert rows == list(range(sum(row_groups)))
    assert all(0 < unit.num_rows <= rows_per_unit for unit in units)


@given(st.lists(st.integers(1, 40), max_size=8), st.integers(1, 20))
def test_a_unit_either_lies_in_one_row_group_or_holds_whole_ones(row_groups: list[int], rows_per_unit: int) -> None:
    starts = [sum(row_groups[:i]) for i in range(len(row_groups) + 1)]
    for unit in cut(shard_of(row_groups), rows_per_unit):
        inside = any(a <= unit.start and unit.stop <= b for a, b in pairwise(starts))
        assert inside or (unit.start in starts and unit.stop in starts)


def test_the_example_of_the_docstring_is_true() -> None:
    units = cut(shard_of([3, 3, 3, 20]), 8)
    assert [(unit.start, unit.stop) for unit in units] == [(0, 6), (6, 9), (9, 15), (15, 22), (22, 29)]


def test_a_unit_is_another_one_when_its_file_has_changed() -> None:
    before = Shard(path="p", name="a", size=1, version="1", row_groups=(5,))
    after = Shard(path="p", name="a", size=1, version="2", row_groups=(5,))
    assert [u.id for u in cut(before, 9)] != [u.id for u in cut(after, 9)]


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
    with pytest.raises(InputError, match=r"1 of 3 input files cannot be read as Parquet:\n.*c\.parquet"):
        names_of(tmp_path / "in")


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
    unit = next(cut(Shard(path="", name="\N{CJK UNIFIED IDEOGRAPH-8CC7}" * 82 + ".parquet", size=1, version="v",
                          row_groups=(2**40,)), 2**40))  # fmt: skip
    assert len(unit.part_name("f" * 64).encode()) <= 255
