"""Whatever type a file stores texts as, a task gets texts; and what is kept is as it was."""

from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.pipelines.columns.texts import as_text
from batchloom.pipelines.errors import InputError
from batchloom.pipelines.tasks.base import ColumnKind
from tests.pipelines.columns.test_choose import TASK, choose
from tests.pipelines.columns.test_given import rows_of

CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string(), pa.large_string()])
def test_bytes_are_texts_and_those_that_are_no_utf8_are_left_to_be_errors(kind) -> None:
    schema, _ = choose({"text": kind}, {"text": pa.string()})
    texts = as_text(pa.chunked_array([pa.array([b"a", "é".encode(), None], kind)]).cast(schema.field("text").type))
    assert texts.type == pa.string()
    assert texts.to_pylist() == ["a", "é", None]
    if pa.types.is_binary(kind):
        bad = as_text(pa.chunked_array([pa.array([b"\xff"], kind)]))
        with pytest.raises(pa.ArrowInvalid):
            bad.validate(full=True)


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.string()), pa.list_(pa.string(), 2), pa.large_list(pa.string()), pa.list_(pa.binary()),
     pa.list_(pa.dictionary(pa.int32(), pa.string()))],
)  # fmt: skip
def test_lists_of_texts_may_be_of_any_kind(monkeypatch, kind) -> None:
    monkeypatch.setattr(TASK, "input_columns", lambda: {"text": ColumnKind.TEXTS})
    schema, _ = choose({"text": kind}, {"text": pa.list_(pa.string())})
    column = pa.chunked_array([pa.array([["a", "b"]], kind)]).cast(schema.field("text").type)
    assert as_text(column).to_pylist() == [["a", "b"]]


def test_a_chat_is_its_turns_where_a_task_reads_turns(monkeypatch) -> None:
    with pytest.raises(InputError, match=r"Column 'text' holds list<.*role.*>, not text\."):
        choose({"text": CHAT})
    monkeypatch.setattr(TASK, "input_columns", lambda: {"text": ColumnKind.TEXT_OR_TEXTS})
    choose({"text": CHAT})
    chat = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}], None, []]
    assert as_text(pa.chunked_array([pa.array(chat, CHAT)])).to_pylist() == [["Hi", None], None, []]


def test_times_after_2262_and_extension_types_stay_what_they_are(tmp_path) -> None:
    """A year 9999 of Spark's became 1816 without a word."""
    until = [datetime(9999, 12, 31), datetime(2020, 1, 1)]
    ids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef"] * 2, pa.binary(16)))
    table = pa.table({"text": ["a", "b"], "id": ids, "until": pa.array(until, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    rows = rows_of(tmp_path)
    assert rows["until"].to_pylist() == until
    assert rows["id"].type == pa.uuid()
    assert rows["id"].combine_chunks().storage.to_pylist() == [b"0123456789abcdef"] * 2
