"""Footers are read once, kept without credentials, and read again wherever a kept one might not be the file's."""

import logging
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.models.patience import Patience
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.formats.base import Columns, compact
from batchloom.pipelines.planning import input_files, kept_footers
from batchloom.pipelines.planning.footers import Footers
from batchloom.pipelines.planning.kept_footers import KeptFooters
from batchloom.pipelines.planning.shards import Shard, find_shards, keep_footers
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.stores.storage import Store

COLUMNS = Columns(("text",), None)


def write(path: Path, num_rows: int, **more: list[object]) -> None:
    table = pa.table({"id": range(num_rows), "text": [f"text {row} " * 9 for row in range(num_rows)], **more})
    pq.write_table(table, path, row_group_size=4)


@pytest.fixture
def config(tmp_path: Path) -> InputConfig:
    """Three shards, of two schemas."""
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.parquet", 10)
    write(folder / "b.parquet", 3)
    write(folder / "c.parquet", 5, late=list("vwxyz"))
    return InputConfig(paths=(str(folder),))


@pytest.fixture
def num_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return how many footers were read since the last call."""
    paths: list[str] = []
    read = Footers.read

    def counted(self: Footers, path: str, size: int | None) -> object:
        paths.append(path)
        return read(self, path, size)

    def num() -> int:
        found = len(paths)
        paths.clear()
        return found

    monkeypatch.setattr(Footers, "read", counted)
    return num


def store_of(config: InputConfig) -> Store:
    return Store(str(Path(config.paths[0]).parent / "out"))


def plan(config: InputConfig, columns: Columns | None = COLUMNS, keeps: bool = True) -> list[Shard]:
    kept = KeptFooters(store_of(config), columns)
    shards, schemas = find_shards(config, None, columns, kept)
    assert [schema.names[-1] for schema in schemas] == ["late" if shard.name[0] == "c" else "text" for shard in shards]
    if keeps:
        keep_footers(kept, config, Patience(), shards, schemas)
    return shards


def test_a_second_plan_reads_no_footer_and_finds_the_same(config, num_read) -> None:
    first = plan(config)
    assert num_read() == 3
    assert plan(config) == first == plan(config, columns=None, keeps=False)  # verify asks for no bytes
    assert num_read() == 0
    assert [list(shard.row_groups) for shard in first] == [[4, 4, 2], [3], [4, 1]]


def test_a_kept_schema_is_the_one_that_was_read(config, num_read) -> None:
    """Of maps it was not: the second run of a job that keeps one wrote all of its parts anew."""
    mapped = pa.map_(pa.string(), pa.list_(pa.map_(pa.int32(), pa.timestamp("us", "UTC"))))
    kinds = [
        mapped, pa.struct([("inner", mapped)]), pa.list_(mapped), pa.list_(pa.float32(), 2), pa.large_list(pa.date32()),
        pa.dictionary(pa.int32(), pa.string()), pa.decimal128(9, 2), pa.duration("ms"), pa.binary(3), pa.uuid(),
    ]  # fmt: skip
    table = pa.table({f"column {number}": pa.nulls(2, kind) for number, kind in enumerate(kinds)})
    pq.write_table(table.append_column("text", pa.array(["a", "b"])), Path(config.paths[0]) / "d.parquet")
    schemas = []
    for num_to_read in (4, 0):
        kept = KeptFooters(store_of(config), COLUMNS)
        shards, found = find_shards(config, None, COLUMNS, kept)
        keep_footers(kept, config, Patience(), shards, found)
        assert num_read() == num_to_read
        schemas.append([str(field.type) for schema in found for field in schema])
    assert schemas[0] == schemas[1]


def test_a_job_of_other_columns_reads_the_footers_again(config, num_read) -> None:
    before = plan(config)
    other = Columns(("text",), ("late",))
    after = plan(config, other)
    assert num_read() == 6
    assert [shard.read_bytes for shard in before] == [shard.read_bytes for shard in after]
    assert [sum(shard.kept_bytes) > 0 for shard in after] == [False, False, True]
    plan(config, other)
    assert num_read() == 0


def test_only_files_that_changed_or_are_new_are_read(config, num_read) -> None:
    folder = Path(config.paths[0])
    plan(config)
    write(folder / "b.parquet", 7)
    write(folder / "bb.parquet", 1)
    (folder / "a.parquet").unlink()
    num_read()
    assert [shard.num_rows for shard in plan(config)] == [7, 1, 5]
    assert num_read() == 2
    assert [shard.num_rows for shard in plan(config)] == [7, 1, 5]
    assert num_read() == 0


def test_a_file_that_was_swapped_while_its_footer_was_read_is_not_kept(config, num_read, monkeypatch) -> None:
    """Its rows would be those of the file that was put in its place, and later it may be put back."""
    path = Path(config.paths[0]) / "a.parquet"
    kept = KeptFooters(store_of(config), COLUMNS)
    original, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    listed = input_files.find_files(config, Patience())
    write(path, 6)
    with monkeypatch.context() as patched:
        patched.setattr("batchloom.pipelines.planning.shards.find_files", lambda *_: listed)
        shards, schemas = find_shards(config, None, COLUMNS, kept)
    keep_footers(kept, config, Patience(), shards, schemas)
    path.write_bytes(original)
    os.utime(path, ns=times)
    num_read()
    assert [shard.num_rows for shard in plan(config)] == [10, 3, 5]
    assert num_read() == 1


def test_a_file_without_a_version_is_not_kept(config, num_read, monkeypatch) -> None:
    monkeypatch.setattr(input_files, "version_of", lambda _: "")
    plan(config)
    plan(config)
    assert num_read() == 6


def test_what_is_damaged_is_read_again(config, num_read, caplog) -> None:
    expected = plan(config)
    file = Path(store_of(config).url) / kept_footers.NAME
    whole = file.read_bytes()
    damaged = [bytes(byte ^ (index == at) for index, byte in enumerate(whole)) for at in range(0, len(whole), 37)]
    for content in (*damaged, whole[:-1], whole[: len(whole) // 2], b"", b"PAR1"):
        file.write_bytes(content)
        num_read()
        assert plan(config, keeps=False) == expected
        assert num_read() == 3
        assert "is of no use, and footers are read again" in caplog.text
        caplog.clear()
    file.write_bytes(whole)
    num_read()
    plan(config, keeps=False)
    assert num_read() == 0


def test_footers_that_cannot_be_kept_stop_no_job(config, caplog) -> None:
    (Path(config.paths[0]).parent / "out").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert [shard.num_rows for shard in plan(config)] == [10, 3, 5]
    assert "The footers of the input are not kept" in caplog.text


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("bucket/day=1/a.parquet", "bucket/day=1/a.parquet"),
        ("https://host/a.parquet?X-Amz-Signature=s3cr3t&X-Amz-Expires=9", "https://host/a.parquet"),
        ("https://user:s3cr3t@host/a.parquet", ""),
        ("bucket/a.parquet?token=s3cr3t", ""),
    ],
)
def test_no_credential_is_written(path: str, written: str) -> None:
    assert kept_footers._public_path(path) == written


def test_a_hundred_thousand_shards_of_thirty_row_groups_fit_in_some_hundred_megabytes() -> None:
    many = 2000
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    made = [
        Shard(
            source=Source(
                path=f"bucket/a-folder-of-some-length/day=2024-01-01/part-{number:05d}-0123456789ab.parquet",
                name=f"day=2024-01-01/part-{number:05d}-0123456789ab.parquet",
                size=1_000_000 + number,
                version=f'"{number:032d}"',
                footer_bytes=20_000 + number,
            ),
            row_groups=compact([100_000] * 30),
            read_bytes=compact([10_000_000 + number] * 30),
            kept_bytes=compact([10_000_000 + number] * 30),
        )
        for number in range(many)
    ]
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(made) == many
    assert (after - before) / many < 1250  # bytes; 770 for shards of one row group
