"""Delta tables: the rows of a version, each once, whatever lies in the folder beside."""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyroaring import BitMap

from batchloom.pipelines.errors import InputError
from batchloom.pipelines.formats.base import Columns
from batchloom.pipelines.planning import input_files
from batchloom.pipelines.planning.shards import find_shards
from batchloom.pipelines.tables.choice import open_table
from batchloom.pipelines.tables.table import Table
from tests.pipelines.tables.rows import input_of, rows_of


def numbered(start: int, stop: int, **more: list) -> pa.Table:
    ids = range(start, stop)
    return pa.table({"id": pa.array(ids, pa.int64()), "text": [f"text {number}" for number in ids], **more})


def ids_of(path: Path, **options) -> list[int]:
    rows = rows_of(path, **options)
    assert rows["error"].null_count == len(rows)
    assert rows["text"].to_pylist() == [f"text {number}" for number in rows["id"].to_pylist()]
    return sorted(rows["id"].to_pylist())


@pytest.fixture
def table(tmp_path) -> Path:
    """Version 0 has ids 0 to 9, 1 to 14, 2 without 3 and 12, 3 has 20 to 24 alone."""
    path = tmp_path / "table"
    write_deltalake(path, numbered(0, 10))
    write_deltalake(path, numbered(10, 15), mode="append")
    DeltaTable(path).delete("id = 3 or id = 12")
    write_deltalake(path, numbered(20, 25), mode="overwrite")
    return path


VERSIONS = [
    list(range(10)),
    list(range(15)),
    [number for number in range(15) if number not in (3, 12)],
    list(range(20, 25)),
]


@pytest.mark.parametrize("version", range(4))
def test_each_version_has_its_own_rows_once_though_the_folder_holds_those_of_all(table, version) -> None:
    assert ids_of(table, version=version) == VERSIONS[version]
    assert len(list(table.glob("*.parquet"))) > 2


def test_the_newest_version_is_read_where_none_is_asked_for_and_an_older_one_says_so(table, caplog) -> None:
    assert ids_of(table) == VERSIONS[3]
    assert not caplog.records
    shards, _ = find_shards(input_of(table, version=1))
    assert (shards[0].format.version, shards[0].format.newest) == (1, 3)
    assert "Version 1 of the Delta table" in caplog.text
    assert "has version 3 by now" in caplog.text


@pytest.mark.parametrize("version", [-1, 4])
def test_a_version_that_is_not_there_is_refused_with_those_that_are(table, version) -> None:
    with pytest.raises(InputError, match=rf"input\.version: {version} of the Delta table .* has the versions 0 to 3"):
        find_shards(input_of(table, version=version))


def test_rows_tell_where_they_lie_in_their_files(table) -> None:
    rows = rows_of(table, version=2)
    for row in rows.select(["id", "_source"]).to_pylist():
        file = pq.read_table(table / row["_source"]["file"])
        assert file["id"][row["_source"]["row"]].as_py() == row["id"]


def test_a_checkpoint_stands_for_what_was_before_it(table) -> None:
    DeltaTable(table, version=2).create_checkpoint()
    for version in (0, 1):
        (table / f"_delta_log/{version:020}.json").unlink()
    assert ids_of(table, version=2) == VERSIONS[2]
    assert ids_of(table) == VERSIONS[3]
    with pytest.raises(InputError, match="has the versions 2 to 3"):
        find_shards(input_of(table, version=1))


def test_files_that_were_vacuumed_are_missed_by_name(table) -> None:
    DeltaTable(table).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert ids_of(table) == VERSIONS[3]
    with pytest.raises(
        InputError, match=r"of \d files of version 1 of the Delta table .* VACUUM .*input\.version: 5\."
    ):
        find_shards(input_of(table, version=1))


def test_a_version_that_is_committed_while_the_folder_is_listed_is_whole(table, monkeypatch) -> None:
    def committing(*given: Any) -> Table:
        write_deltalake(table, numbered(25, 27), mode="append")
        return open_table(*given)

    monkeypatch.setattr(input_files, "open_table", committing)
    assert ids_of(table) == [*VERSIONS[3], 25, 26]


def test_partitions_are_columns_of_the_tables_types_though_no_file_holds_them(tmp_path) -> None:
    days = pa.array([0, 1, None, 1], pa.date32())
    data = numbered(0, 4, day=days, lang=["en", "de fr", None, "a/b=c%20"], ok=[True, False, None, True])
    data = data.append_column("at", pa.array([0, 1, None, 1_700_000_000_000_001], pa.timestamp("us", "UTC")))
    write_deltalake(tmp_path / "t", data, partition_by=["lang", "day", "ok", "at"])
    assert all("lang" not in pq.ParquetFile(file).schema.names for file in (tmp_path / "t").rglob("*.parquet"))
    rows = rows_of(tmp_path / "t").sort_by("id")
    assert rows.select(data.column_names).equals(data)
    assert rows_of(tmp_path / "t", keep_columns=("lang",)).num_rows == 4


def test_columns_that_were_added_are_null_in_older_files_and_types_widen(tmp_path) -> None:
    write_deltalake(tmp_path / "t", numbered(0, 3).set_column(0, "id", pa.array([0, 1, 2], pa.int64())))
    write_deltalake(tmp_path / "t", numbered(3, 5, more=["x", "y"]), mode="append", schema_mode="merge")
    rows = rows_of(tmp_path / "t").sort_by("id")
    assert rows["more"].to_pylist() == [None, None, None, "x", "y"]
    assert rows_of(tmp_path / "t", keep_columns=("more",)).num_rows == 5


def rewrite_log(path: Path, commit: list[dict]) -> None:
    version = len(list((path / "_delta_log").glob("*.json")))
    (path / f"_delta_log/{version:020}.json").write_text("\n".join(map(json.dumps, commit)))


@pytest.mark.parametrize("mode", ["name", "id"])
def test_columns_that_were_renamed_are_read_by_their_names_or_numbers_in_the_files(tmp_path, mode) -> None:
    path = tmp_path / "t"
    (path / "_delta_log").mkdir(parents=True)

    def stored(number: int, kind: pa.DataType) -> pa.Field:
        name = f"col-{number}" if mode == "name" else f"any-{number}"
        return pa.field(name, kind, metadata={"PARQUET:field_id": str(number)})

    inner = pa.struct([stored(4, pa.string())])
    own = [stored(1, pa.int64()), stored(2, pa.string()), stored(3, inner), pa.field("id", pa.int64())]
    docs = pa.array([("x",), ("y",)], inner)
    data = pa.table([pa.array([0, 1]), pa.array(["text 0", "text 1"]), docs, pa.array([7, 7])], pa.schema(own))
    pq.write_table(data, path / "p.parquet")

    def field(name: str, kind: object, number: int) -> dict:
        mapping = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": f"col-{number}"}
        return {"name": name, "type": kind, "nullable": True, "metadata": mapping}

    doc = {"type": "struct", "fields": [field("body", "string", 4)]}
    fields = [field("id", "long", 1), field("text", "string", 2), field("lang", "string", 5)]
    add = {"path": "p.parquet", "partitionValues": {"col-5": "en"}, "size": os.path.getsize(path / "p.parquet"),
           "modificationTime": 1, "dataChange": True}  # fmt: skip

    def commit(fields: list[dict]) -> list[dict]:
        schema = json.dumps({"type": "struct", "fields": fields})
        meta = {"id": "a", "format": {"provider": "parquet", "options": {}}, "schemaString": schema, "createdTime": 1,
                "partitionColumns": ["lang"], "configuration": {"delta.columnMapping.mode": mode}}  # fmt: skip
        return [{"protocol": {"minReaderVersion": 2, "minWriterVersion": 5}}, {"metaData": meta}, {"add": add}]

    rewrite_log(path, commit(fields))
    rows = rows_of(path)
    assert rows.select(["id", "text", "lang"]).to_pylist() == [
        {"id": number, "text": f"text {number}", "lang": "en"} for number in (0, 1)
    ]
    rewrite_log(path, commit([*fields, field("doc", doc, 3)]))
    assert rows_of(path, keep_columns=("text",)).num_rows == 2
    used = Columns(("text",), ("doc.body",))
    with pytest.raises(InputError, match="fields inside of its column 'doc' were renamed"):
        find_shards(input_of(path), None, used)


def delete_by_vector(path: Path, rows: list[int], in_file: bool) -> None:
    """Commit what Spark does for DELETE: the same file, and a bitmap of its rows that are deleted."""
    z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"

    def encoded(content: bytes) -> str:
        words = (int.from_bytes(content[i : i + 4], "big") for i in range(0, len(content), 4))
        return "".join(z85[word // 85**power % 85] for word in words for power in (4, 3, 2, 1, 0))

    lines = (path / "_delta_log/00000000000000000000.json").read_text().splitlines()
    add = next(line["add"] for line in map(json.loads, lines) if "add" in line)
    content = struct.pack("<IQI", 1681511377, 1, 0) + BitMap(rows).serialize()
    vector = {"storageType": "i", "pathOrInlineDv": encoded(content + b"\0" * (-len(content) % 4))}
    if in_file:
        name = bytes(range(16))
        text = name.hex()
        uuid = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
        framed = b"\1" + struct.pack(">I", len(content)) + content + struct.pack(">I", zlib.crc32(content))
        (path / f"deletion_vector_{uuid}.bin").write_bytes(framed)
        vector = {"storageType": "u", "pathOrInlineDv": encoded(name), "offset": 1}
    vector |= {"sizeInBytes": len(content), "cardinality": len(rows)}
    gone = {"path": add["path"], "dataChange": True, "deletionTimestamp": 1}
    rewrite_log(path, [{"remove": gone}, {"add": {**add, "deletionVector": vector}}])


@pytest.mark.parametrize("in_file", [False, True])
def test_rows_that_deletion_vectors_delete_are_not_read_and_the_others_keep_their_numbers(tmp_path, in_file) -> None:
    path = tmp_path / "t"
    write_deltalake(path, numbered(0, 12), configuration={"delta.enableDeletionVectors": "true"})
    before = find_shards(input_of(path))[0][0].source.identity
    delete_by_vector(path, [0, 4, 5, 11], in_file)
    live = [1, 2, 3, 6, 7, 8, 9, 10]
    for unit_rows in (1, 2, 3, 5, 100):
        rows = rows_of(path, unit_rows)
        assert rows["id"].to_pylist() == live
        assert [place["row"] for place in rows["_source"].to_pylist()] == live
    (shard,), _ = find_shards(input_of(path))
    assert shard.num_rows == 8
    assert shard.source.identity != before
    assert ids_of(path, version=0) == list(range(12))
    if in_file:
        next(path.glob("*.bin")).unlink()
        with pytest.raises(InputError, match=r"cannot be read by deltalake.*deletion_vector_00010203"):
            find_shards(input_of(path))


def test_damage_is_that_of_the_live_rows_that_it_hits(tmp_path) -> None:
    path = tmp_path / "t"
    write_deltalake(path, numbered(0, 12), configuration={"delta.enableDeletionVectors": "true"})
    (file,) = path.glob("*.parquet")
    pq.write_table(numbered(0, 12), file, row_group_size=4, compression="none", use_dictionary=False)
    chunk = pq.ParquetFile(file).metadata.row_group(1).column(1)
    content = bytearray(file.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + 8] = b"\xff" * 8
    file.write_bytes(content)
    delete_by_vector(path, [0, 5, 6, 11], in_file=False)
    rows = rows_of(path, 3)
    damaged = [error is not None for error in rows["error"].to_pylist()]
    assert [place["row"] for place in rows["_source"].to_pylist()] == [1, 2, 3, 4, 7, 8, 9, 10]
    assert damaged == [False, False, False, True, True, False, False, False]
    assert rows["id"].to_pylist() == [1, 2, 3, None, None, 8, 9, 10]


def test_a_table_that_needs_what_this_reader_does_not_know_is_refused_by_name(tmp_path) -> None:
    write_deltalake(tmp_path / "t", numbered(0, 2))
    features = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": ["timeMachine"],
        "writerFeatures": ["timeMachine"],
    }
    rewrite_log(tmp_path / "t", [{"protocol": features}])
    with pytest.raises(InputError, match="timeMachine"):
        find_shards(input_of(tmp_path / "t"))


def test_a_damaged_log_is_refused_in_a_few_words(table) -> None:
    """The library's traceback stood in the message."""
    max((table / "_delta_log").glob("*.json")).write_text("{nonsense")
    with pytest.raises(InputError, match=r"cannot be read by deltalake: .*whilst parsing") as refused:
        find_shards(input_of(table))
    assert "\n" not in str(refused.value)


def test_a_table_in_any_store_is_read_through_its_filesystem(table) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(table), "/delta-tables/t", recursive=True)
    try:
        assert ids_of("memory://delta-tables/t", version=2) == VERSIONS[2]
    finally:
        memory.rm("/delta-tables", recursive=True)
