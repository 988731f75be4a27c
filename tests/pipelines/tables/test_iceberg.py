"""Iceberg tables: the rows of a snapshot, each once, by their columns' numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent, ManifestWriterV2
from pyiceberg.table import Table
from pyiceberg.transforms import YearTransform
from pyiceberg.types import LongType

from batchloom.pipelines.errors import InputError
from batchloom.pipelines.formats.base import Columns
from batchloom.pipelines.planning.shards import find_shards
from tests.pipelines.tables.rows import input_of, rows_of


def numbered(start: int, stop: int, **more: Any) -> pa.Table:
    ids = range(start, stop)
    return pa.table({"id": pa.array(ids, pa.int32()), "text": [f"text {number}" for number in ids], **more})


@pytest.fixture
def catalog(tmp_path) -> SqlCatalog:
    (tmp_path / "wh").mkdir()
    catalog = SqlCatalog("test", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/wh")
    catalog.create_namespace("ns")
    return catalog


@pytest.fixture
def create(catalog) -> Callable[..., Table]:
    def create(data: pa.Table, **options: Any) -> Table:
        table = catalog.create_table("ns.t", data.schema, **options)
        table.append(data)
        return table

    return create


def folder_of(table: Table) -> Path:
    return Path(table.location().removeprefix("file://"))


def ids_of(path: str | Path, **options: Any) -> list[int]:
    rows = rows_of(path, **options)
    assert rows["error"].null_count == len(rows)
    assert rows["text"].to_pylist() == [f"text {number}" for number in rows["id"].to_pylist()]
    return sorted(rows["id"].to_pylist())


@pytest.fixture
def table(create) -> Table:
    """Snapshots with ids 0 to 9, 0 to 14, 0 to 14 without 3 and 12, and 20 to 24 alone."""
    table = create(numbered(0, 10))
    table.append(numbered(10, 15))
    table.delete("id = 3 or id = 12")
    table.overwrite(numbered(20, 25))
    return table


def test_each_snapshot_has_its_own_rows_once_though_the_folder_holds_those_of_all(table, caplog) -> None:
    rows, first, *others, last = numbered(0, 15)["id"].to_pylist(), *(one.snapshot_id for one in table.snapshots())
    assert ids_of(folder_of(table), version=first) == rows[:10]
    assert ids_of(folder_of(table), version=others[0]) == rows
    assert ids_of(folder_of(table), version=others[1]) == [row for row in rows if row not in (3, 12)]
    assert "of the Iceberg table" in caplog.text
    assert f"has snapshot {last} by now" in caplog.text
    caplog.clear()
    assert ids_of(folder_of(table)) == list(range(20, 25))
    assert not caplog.records


def test_a_snapshot_that_is_not_there_is_refused_with_those_that_are(table) -> None:
    with pytest.raises(InputError, match=rf"input\.version: 7 is no snapshot .*{table.snapshots()[-1].snapshot_id}"):
        find_shards(input_of(folder_of(table), version=7))


def test_rows_tell_where_they_lie_in_their_files(table) -> None:
    rows = rows_of(folder_of(table), version=table.snapshots()[2].snapshot_id)
    for row in rows.select(["id", "_source"]).to_pylist():
        file = pq.read_table(folder_of(table) / row["_source"]["file"])
        assert file["id"][row["_source"]["row"]].as_py() == row["id"]


def test_a_column_is_read_by_its_number_whatever_it_was_called(create) -> None:
    table = create(numbered(0, 3, body=["old 0", "old 1", "old 2"], doc=[{"a": "x"}] * 3))
    with table.update_schema() as change:
        change.rename_column("body", "content")
        change.update_column("id", LongType())
    with table.update_schema() as change:
        change.add_column("body", LongType())
    table.append(numbered(3, 4, content=["new 3"], doc=[{"a": "y"}], body=[3]).cast(table.schema().as_arrow()))
    rows = rows_of(folder_of(table)).sort_by("id")
    assert rows["content"].to_pylist() == ["old 0", "old 1", "old 2", "new 3"]
    assert rows["body"].to_pylist() == [None, None, None, 3]
    assert rows["id"].type == pa.int64()
    assert rows["doc"].to_pylist() == [{"a": "x"}] * 3 + [{"a": "y"}]
    assert rows.schema.field("text").type == pa.string()
    assert rows_of(folder_of(table), keep_columns=("body",)).num_rows == 4
    with table.update_schema() as change:
        change.rename_column("doc.a", "b")
    with pytest.raises(InputError, match="fields inside of its column 'doc' were renamed or replaced"):
        find_shards(input_of(folder_of(table)), None, Columns(("text",)))


def test_partitions_are_columns_and_those_that_a_transform_makes_are_not(catalog) -> None:
    days = pa.array([0, 1, None, 1], pa.date32())
    data = numbered(0, 4, lang=["en", "d e", None, "a/b=c"], day=days)
    table = catalog.create_table("ns.t", data.schema)
    with table.update_spec() as change:
        change.add_identity("lang")
        change.add_identity("day")
    table.append(data)
    rows = rows_of(folder_of(table)).sort_by("id")
    assert rows.column_names == [*data.column_names, "_source", "error"]
    assert rows.select(data.column_names).equals(data)
    with table.update_spec() as change:
        change.remove_field("lang")
        change.remove_field("day")
        change.add_field("day", YearTransform(), "year")
    added = numbered(4, 6, lang=["en", "fr"], day=pa.array([1, 2], pa.date32()))
    path = "data/year=1970/added.parquet"
    (folder_of(table) / path).parent.mkdir()
    pq.write_table(added, folder_of(table) / path)
    table.add_files([f"{table.location()}/{path}"])
    rows = rows_of(folder_of(table)).sort_by("id")
    assert rows.column_names == [*data.column_names, "_source", "error"]
    assert rows.select(data.column_names).equals(pa.concat_tables([data, added]))


def test_files_that_were_added_have_no_numbers_and_are_read_by_the_tables_names_for_them(create) -> None:
    table = create(numbered(0, 2))
    pq.write_table(numbered(2, 4), folder_of(table) / "added.parquet")
    table.add_files([f"{table.location()}/added.parquet"])
    with table.update_schema() as change:
        change.rename_column("id", "number")
    rows = rows_of(folder_of(table))
    assert sorted(rows["number"].to_pylist()) == [0, 1, 2, 3]


def test_a_file_that_is_in_the_table_twice_is_refused(create) -> None:
    table = create(numbered(0, 2))
    pq.write_table(numbered(2, 4), folder_of(table) / "added.parquet")
    for _ in range(2):
        table.add_files([f"{table.location()}/added.parquet"], check_duplicate_files=False)
    with pytest.raises(InputError, match=r"has 1 files twice, so their rows are in it twice .*added\.parquet"):
        find_shards(input_of(folder_of(table)))


def test_a_table_that_was_moved_and_one_in_another_store_are_read_where_they_are(table, tmp_path) -> None:
    moved = tmp_path / "moved"
    folder_of(table).rename(moved)
    assert ids_of(moved) == list(range(20, 25))
    memory = fsspec.filesystem("memory")
    memory.put(str(moved), "/iceberg-tables/t", recursive=True)
    try:
        assert ids_of("memory://iceberg-tables/t") == list(range(20, 25))
    finally:
        memory.rm("/iceberg-tables", recursive=True)


def test_the_metadata_file_is_the_newest_or_the_one_that_is_named(table) -> None:
    metadata = folder_of(table) / "metadata"
    names = sorted(path.name for path in metadata.glob("*.metadata.json"))
    assert ids_of(metadata / names[1]) == list(range(10))
    orphan = metadata / f"{names[-1].partition('-')[0]}-orphan.metadata.json"
    orphan.write_bytes((metadata / names[1]).read_bytes())
    with pytest.raises(InputError, match=r"cannot be told: there are .*orphan\.metadata\.json\. Name the one"):
        find_shards(input_of(folder_of(table)))
    (metadata / "version-hint.text").write_text(names[-1])
    assert ids_of(folder_of(table)) == list(range(20, 25))


@pytest.mark.parametrize("content", ["", "{}", '{"format-version": 2}', "nonsense"])
def test_damaged_metadata_are_refused_by_name(table, content) -> None:
    newest = max((folder_of(table) / "metadata").glob("*.metadata.json"))
    newest.write_text(content)
    with pytest.raises(InputError, match=rf"{newest.name} is damaged or holds no metadata") as refused:
        find_shards(input_of(folder_of(table)))
    assert "\n" not in str(refused.value)


def test_a_snapshot_whose_files_are_gone_is_refused_by_name(table) -> None:
    first = table.snapshots()[0].snapshot_id
    (gone,) = [task.file.file_path for task in table.scan(snapshot_id=first).plan_files()]
    Path(gone.removeprefix("file://")).unlink()
    with pytest.raises(
        InputError, match=r"1 of 1 files of snapshot \d+ of the Iceberg table .* are not there any more"
    ):
        find_shards(input_of(folder_of(table), version=first))
    Path(table.snapshots()[0].manifest_list.removeprefix("file://")).unlink()
    with pytest.raises(InputError, match="lacks a file that its metadata name"):
        find_shards(input_of(folder_of(table), version=first))
    assert ids_of(folder_of(table)) == list(range(20, 25))


class _DeletesWriter(ManifestWriterV2):
    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


def commit_deletes(table: Table, rows: list[int], monkeypatch: pytest.MonkeyPatch, content: DataFileContent) -> None:
    """Commit what Spark does for a merge-on-read DELETE; pyiceberg writes new files for one."""
    from pyiceberg.table.update import snapshot

    (task,) = table.scan().plan_files()
    path = f"{table.location()}/data/deletes.parquet"
    positions = pa.table({"file_path": [task.file.file_path] * len(rows), "pos": rows})
    pq.write_table(positions, path.removeprefix("file://"))
    size = Path(path.removeprefix("file://")).stat().st_size
    deletes = DataFile.from_args(
        content=content, file_path=path, file_format=FileFormat.PARQUET, partition=task.file.partition,
        record_count=len(rows), file_size_in_bytes=size, spec_id=0, equality_ids=[1],
    )  # fmt: skip
    deletes.spec_id = 0
    with monkeypatch.context() as patched:
        patched.setattr(snapshot, "write_manifest", lambda **given: _DeletesWriter(*list(given.values())[1:]))
        with table.transaction() as transaction, transaction.update_snapshot().fast_append() as update:
            update.append_data_file(deletes)


def test_rows_that_position_deletes_delete_are_not_read_and_the_others_keep_their_numbers(create, monkeypatch) -> None:
    table = create(numbered(0, 12))
    before = find_shards(input_of(folder_of(table)))[0][0].source.identity
    commit_deletes(table, [0, 4, 5, 11], monkeypatch, DataFileContent.POSITION_DELETES)
    live = [1, 2, 3, 6, 7, 8, 9, 10]
    for unit_rows in (1, 3, 100):
        rows = rows_of(folder_of(table), unit_rows)
        assert rows["id"].to_pylist() == live
        assert [place["row"] for place in rows["_source"].to_pylist()] == live
    assert find_shards(input_of(folder_of(table)))[0][0].source.identity != before
    assert table.scan().to_arrow()["id"].to_pylist() == live  # as pyiceberg reads what was handcrafted


def test_equality_deletes_are_refused_by_name(create, monkeypatch) -> None:
    table = create(numbered(0, 12))
    commit_deletes(table, [0, 4], monkeypatch, DataFileContent.EQUALITY_DELETES)
    with pytest.raises(InputError, match=r"(?i)equality deletes.*rewrite_data_files"):
        find_shards(input_of(folder_of(table)))


def test_an_empty_table_is_refused(catalog) -> None:
    table = catalog.create_table("ns.empty", numbered(0, 1).schema)
    with pytest.raises(InputError, match="has no snapshot"):
        find_shards(input_of(folder_of(table)))
