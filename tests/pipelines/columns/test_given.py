"""What a file's place tells of its rows: Hive partitions as columns, and `_source`."""

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from batchloom.pipelines.columns.choose import choose_columns
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.planning.shards import find_shards, sources_of
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.stages.reader import Reader
from tests.forms import write
from tests.pipelines.columns.test_choose import TASK


def rows_of(folder: Path, keep: tuple[str, ...] | None = None) -> pa.Table:
    config = InputConfig(paths=(str(folder),), keep_columns=keep)
    shards, schemas = find_shards(config)
    schema, kept = choose_columns(config, TASK, shards, schemas)
    spans = [Span(shard.name, shard.source.identity, 0, shard.num_rows) for shard in shards]
    reader = Reader(pa.schema([schema.field(name) for name in kept]), {}, str(folder), format=shards[0].format)
    sources = sources_of(spans, {shard.name: shard for shard in shards})
    return pa.concat_tables(reader.tables(sources, [[span] for span in spans]))


@pytest.mark.parametrize("form", [".parquet", ".jsonl", ".csv.gz"])
def test_partitions_are_columns_and_tell_rows_of_equal_files_apart(tmp_path, form) -> None:
    for folder in ("lang=en/day=2024-01-01", "lang=d%20e/day=7", "lang=__HIVE_DEFAULT_PARTITION__/day=7"):
        (tmp_path / folder).mkdir(parents=True)
        write(pa.table({"id": [1, 2], "text": ["a", "b"]}), tmp_path / folder, "a", form)
    rows = rows_of(tmp_path).drop_columns(["error"])
    assert rows.column_names == ["id", "lang", "day"]
    assert rows["lang"].to_pylist() == [None, None, "d e", "d e", "en", "en"]
    assert rows["day"].to_pylist() == ["7", "7", "7", "7", "2024-01-01", "2024-01-01"]
    assert rows["id"].to_pylist() == [1, 2] * 3
    assert rows_of(tmp_path, ("lang",))["lang"].to_pylist() == rows["lang"].to_pylist()  # opens no file


def test_a_tree_that_pyarrow_writes_comes_back_with_its_partitions_as_texts(tmp_path) -> None:
    table = pa.table({"id": range(6), "text": list("abcdef"), "year": [2023, 2024] * 3})
    ds.write_dataset(table, tmp_path, format="parquet", partitioning=["year"], partitioning_flavor="hive")
    rows = rows_of(tmp_path).sort_by("id")
    assert rows["year"].to_pylist() == ["2023", "2024"] * 3


@pytest.mark.parametrize("form", [".parquet", ".jsonl"])
def test_source_tells_the_file_and_the_row_where_it_is_asked_for(tmp_path, form) -> None:
    for name in ("a", "b"):
        write(pa.table({"text": [f"{name}{row}" for row in range(3)]}), tmp_path, name, form)
    assert rows_of(tmp_path).column_names == ["error"]
    rows = rows_of(tmp_path, ("text", "_source"))
    expected = [(name, row) for name in ("a", "b") for row in range(3)]
    assert rows["text"].to_pylist() == [f"{name}{row}" for name, row in expected]
    assert rows["_source"].to_pylist() == [{"file": f"{name}{form}", "row": row} for name, row in expected]


def test_a_column_of_that_name_is_the_files_own(tmp_path) -> None:
    write(pa.table({"text": ["a"], "_source": ["mine"]}), tmp_path, "a", ".parquet")
    assert rows_of(tmp_path, ("_source",))["_source"].to_pylist() == ["mine"]


def test_rows_that_are_damaged_still_tell_where_they_are(tmp_path) -> None:
    (tmp_path / "k=v").mkdir()
    (tmp_path / "k=v/a.jsonl").write_bytes(b'{"text": "a"}\n{"te\n')
    rows = rows_of(tmp_path, ("text", "k", "_source"))
    assert [error is not None for error in rows["error"].to_pylist()] == [False, True]
    assert rows["k"].to_pylist() == ["v", "v"]
    assert rows["_source"].to_pylist()[1] == {"file": "k=v/a.jsonl", "row": 1}
