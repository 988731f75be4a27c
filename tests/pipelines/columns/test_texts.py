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
     pa.list_(pa.dictionary(pa.int32(), pa.string())), pa.large_list(pa.dictionary(pa.int32(), pa.string())),
     pa.list_(pa.dictionary(pa.int32(), pa.string()), 2), pa.large_list(pa.string_view())],
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


@pytest.mark.parametrize("text", [pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("lists", [pa.list_, pa.large_list])
def test_a_chat_may_be_stored_in_any_way(monkeypatch, text, lists) -> None:
    """polars writes large lists of large texts, and such chats were refused."""
    monkeypatch.setattr(TASK, "input_columns", lambda: {"text": ColumnKind.TEXT_OR_TEXTS})
    kind = lists(pa.struct([("role", text), ("content", text)]))
    schema, _ = choose({"text": kind})
    chat = [[{"role": "user", "content": "Hi"}, {"role": "bot", "content": "é"}], None]
    column = pa.chunked_array([pa.array(chat, kind)]).cast(schema.field("text").type)
    assert as_text(column).to_pylist() == [["Hi", "é"], None]


def test_maps_of_dictionaries_stand_beside_plain_ones() -> None:
    encoded = pa.map_(pa.string(), pa.dictionary(pa.int32(), pa.string()))
    plain = pa.map_(pa.string(), pa.string())
    schema, _ = choose({"text": pa.string(), "m": encoded}, {"text": pa.string(), "m": plain})
    assert schema.field("m").type == plain


def test_lists_of_nothing_but_nulls_are_kept_whole(tmp_path) -> None:
    """A cast to the type that they have left fewer values than the list says, and reading them was undefined."""
    table = pa.table({"text": ["a", "b"], "v": pa.array([[None, None], [None]], pa.list_(pa.null()))})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = rows_of(tmp_path)
    rows.validate(full=True)
    assert rows["v"].to_pylist() == [[None, None], [None]]


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
