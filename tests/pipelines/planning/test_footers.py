"""A footer tells the bytes of the columns that are wanted, in one request of its own length."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.models.patience import Patience
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError
from batchloom.pipelines.formats.base import Columns, compact
from batchloom.pipelines.formats.parquet import Parquet
from batchloom.pipelines.planning import footers, shards
from batchloom.pipelines.planning.shards import find_shards


@pytest.mark.parametrize(
    ("kept", "counted"),
    [(None, ["n", "s.a", "s.b", "words.list.element"]), (("s", "text"), ["s.a", "s.b", "text"]), ((), [])],
)
def test_the_bytes_of_read_and_kept_columns_are_counted(tmp_path, kept, counted: list[str]) -> None:
    rows = range(25)
    table = pa.table(
        {
            "n": rows,
            "s": [{"a": row, "b": "x" * row} for row in rows],
            "text": [f"text {row}" * row for row in rows],
            "words": [["w"] * row for row in rows],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    (shard,), _ = find_shards(InputConfig(paths=(str(tmp_path),)), None, Columns(("text",), kept))

    def bytes_of(paths: list[str]) -> list[int]:
        groups = [metadata.row_group(group) for group in range(3)]
        columns = range(metadata.num_columns)
        return [
            sum(group.column(i).total_uncompressed_size for i in columns if group.column(i).path_in_schema in paths)
            for group in groups
        ]

    assert list(shard.row_groups) == [10, 10, 5]
    assert list(shard.read_bytes) == bytes_of(["text"])
    assert list(shard.kept_bytes) == bytes_of(counted)
    assert shard.source.footer_bytes == metadata.serialized_size + 8


@pytest.mark.parametrize("guess", [8, 100, 1 << 20])
def test_a_footer_is_found_whatever_its_length_was_guessed_to_be(tmp_path, monkeypatch, guess: int) -> None:
    monkeypatch.setattr(footers, "FIRST_GUESS", guess)
    monkeypatch.setattr(footers, "LARGEST_GUESS", guess)
    for number in range(3):
        pq.write_table(pa.table({"n": range(number + 1)}), tmp_path / f"{number}.parquet")
    shards, schemas = find_shards(InputConfig(paths=(str(tmp_path),)))
    assert [shard.num_rows for shard in shards] == [1, 2, 3]
    assert schemas[0] is schemas[1] is schemas[2]


def test_threads_that_read_a_schema_at_once_share_one(tmp_path, monkeypatch) -> None:
    paths = [str(tmp_path / f"{number}.parquet") for number in range(2)]
    for path in paths:
        pq.write_table(pa.table({"n": [1]}), path)
    both, read_schema = Barrier(2, timeout=30), pa.ipc.read_schema
    monkeypatch.setattr(pa.ipc, "read_schema", lambda content: both.wait() >= 0 and read_schema(content))
    found = footers.Footers(InputConfig(paths=(str(tmp_path),)), Patience(), Parquet(), None)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda path: found.read(path, None).schema, paths)
    assert first is second


def test_a_file_that_is_removed_while_footers_are_read_is_said_to_be_gone(tmp_path, monkeypatch) -> None:
    """It was: "cannot be read as Parquet. Repair or remove them"."""
    for number in range(3):
        pq.write_table(pa.table({"n": [1]}), tmp_path / f"{number}.parquet")

    def found(*arguments: object) -> footers.Footers:
        (tmp_path / "1.parquet").unlink()
        return footers.Footers(*arguments)

    monkeypatch.setattr(shards, "Footers", found)
    with pytest.raises(
        InputError, match=r"1 of 3 input files cannot be read:\n.*1\.parquet: .*No such file(?s:.*) may be read"
    ):
        find_shards(InputConfig(paths=(str(tmp_path),)))


def test_numbers_take_as_little_room_as_they_can() -> None:
    for numbers, num_bytes in (([], 1), ([0, 255], 1), ([256], 2), ([1 << 16], 4), ([1 << 32, 1], 8)):
        assert list(compact(numbers)) == numbers
        assert compact(numbers).itemsize == num_bytes
