"""Columns inside of structs are read and kept by their paths, in any format, and no more than them."""

import pyarrow as pa
import pytest

from batchloom.pipelines.columns.choose import choose_columns
from batchloom.pipelines.columns.nested import outermost
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError
from batchloom.pipelines.planning.shards import find_shards
from tests.forms import write
from tests.pipelines.columns.test_choose import TASK
from tests.pipelines.columns.test_given import rows_of

ROWS = [{"doc": {"body": "a", "meta": {"id": 1, "more": [1]}}, "text": "t"}, {"doc": None, "text": "u"}]


@pytest.mark.parametrize("form", [".parquet", ".jsonl"])
def test_paths_name_what_is_inside(tmp_path, form) -> None:
    write(pa.Table.from_pylist(ROWS), tmp_path, "a", form)
    rows = rows_of(tmp_path, ("doc.body", "text", "doc.meta.id"))
    assert rows.drop_columns(["error"]).to_pylist() == [
        {"doc.body": "a", "text": "t", "doc.meta.id": 1},
        {"doc.body": None, "text": "u", "doc.meta.id": None},
    ]
    assert rows_of(tmp_path, ("doc", "doc.body"))["doc"].to_pylist() == [row["doc"] for row in ROWS]


def test_only_what_is_wanted_is_read(tmp_path) -> None:
    write(pa.Table.from_pylist(ROWS), tmp_path, "a", ".parquet")
    config = InputConfig(paths=(str(tmp_path),), keep_columns=("doc.body", "doc.meta.id"))
    schema, _ = choose_columns(config, TASK, *find_shards(config))
    doc = outermost(schema).field("doc").type
    assert doc == pa.struct([("body", pa.string()), ("meta", pa.struct([("id", pa.int64())]))])


def test_a_column_whose_name_has_the_dot_comes_first_and_a_wrong_path_is_refused(tmp_path) -> None:
    write(pa.table({"doc.body": ["whole"], "doc": [{"body": "inside"}], "text": ["t"]}), tmp_path, "a", ".parquet")
    assert rows_of(tmp_path, ("doc.body",))["doc.body"].to_pylist() == ["whole"]
    with pytest.raises(InputError, match=r"Columns 'doc\.title' are not in the input"):
        rows_of(tmp_path, ("doc.title",))
