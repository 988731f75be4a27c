from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from batchloom.pipelines.columns import choose as module
from batchloom.pipelines.columns.choose import choose_columns
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import ConfigError, InputError
from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.tasks.base import ColumnKind

TASK: Any = SimpleNamespace(
    input_columns=lambda: {"text": ColumnKind.TEXT},
    output_fields=lambda: [pa.field("summary_text", pa.string())],
    beside=lambda _: TASK,
)


def shard(name: str) -> Shard:
    return Shard(Source(name, name, 1, ""), (1,), (1,))


def choose(*schemas: dict[str, pa.DataType], keep: tuple[str, ...] | None = None) -> tuple[pa.Schema, tuple[str, ...]]:
    shards = [shard(f"{i}.parquet") for i in range(len(schemas))]
    config = InputConfig(paths=("in",), keep_columns=keep)
    return choose_columns(config, TASK, shards, [pa.schema(list(schema.items())) for schema in schemas])


def test_all_columns_but_the_text_are_kept_unless_the_job_names_some() -> None:
    columns = {"id": pa.int64(), "text": pa.string(), "url": pa.string()}
    assert choose(columns)[1] == ("id", "url")
    schema, kept = choose(columns, keep=("url",))
    assert (schema.names, kept) == (["text", "url"], ("url",))


def test_null_columns_take_the_type_of_the_other_shards_and_numbers_widen() -> None:
    schema, _ = choose({"text": pa.null(), "n": pa.int32()}, {"text": pa.string(), "n": pa.int64()})
    assert schema == pa.schema([("text", pa.string()), ("n", pa.int64())])


@pytest.mark.parametrize("encoded", [pa.dictionary(pa.int32(), pa.string()), pa.string_view(), pa.large_string()])
def test_how_texts_are_encoded_makes_no_difference(encoded: pa.DataType) -> None:
    schema, _ = choose({"text": encoded}, {"text": pa.string()})
    assert schema.field("text").type in (pa.string(), pa.large_string())


def test_a_kept_column_may_be_missing_in_some_shards() -> None:
    schema, kept = choose({"text": pa.string()}, {"text": pa.string(), "late": pa.int64()})
    assert kept == ("late",)
    assert schema.field("late").type == pa.int64()


def test_shards_of_the_same_columns_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 shards of 2,000 columns took 16 s of processor time to plan: each was looked at for each of its columns."""
    looks = []
    monkeypatch.setattr(module, "_plain", lambda schema: looks.append(schema) or schema)
    schema = pa.schema([("text", pa.string()), ("n", pa.int32())])
    wide = pa.schema([("text", pa.string()), ("n", pa.int64())])
    shards = [shard(f"{number}.parquet") for number in range(1000)]
    chosen, kept = choose_columns(InputConfig(paths=("in",)), TASK, shards, [*[schema] * 999, wide])
    assert (chosen, kept) == (wide, ("n",))
    assert len(looks) == 2


def test_the_text_column_must_be_in_every_shard() -> None:
    with pytest.raises(InputError, match=r"'text' is missing in 1 of 2 shards \(1\.parquet\)"):
        choose({"text": pa.string()}, {"body": pa.string()})


def test_types_that_do_not_go_together_are_refused_with_column_and_file() -> None:
    with pytest.raises(InputError, match=r"'n' holds string in 1\.parquet and int64"):
        choose({"text": pa.string(), "n": pa.int64()}, {"text": pa.string(), "n": pa.string()})


def test_types_of_columns_that_nobody_asked_for_do_not_matter() -> None:
    choose({"text": pa.string(), "n": pa.int64()}, {"text": pa.string(), "n": pa.string()}, keep=())


def test_a_text_column_of_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="'text' holds int64, not text"):
        choose({"text": pa.int64()})


@pytest.mark.parametrize("name", ["summary_text", "error", "num_input_tokens"])
def test_a_kept_column_with_a_name_of_the_output_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        choose({"text": pa.string(), name: pa.string()})


def test_two_columns_of_one_name_are_refused_where_they_are_chosen() -> None:
    doubled = pa.schema([("text", pa.string()), ("id", pa.int64()), ("id", pa.string())])
    with pytest.raises(InputError, match=r"a\.parquet has several columns of the name 'id'"):
        choose_columns(InputConfig(paths=("in",)), TASK, [shard("a.parquet")], [doubled])
    assert choose_columns(InputConfig(paths=("in",), keep_columns=()), TASK, [shard("a.parquet")], [doubled])[1] == ()


def test_a_template_may_name_a_price() -> None:
    task: Any = SimpleNamespace(input_columns=lambda: {"price": ColumnKind.VALUE}, output_fields=list)
    task.beside = lambda _: task
    price = pa.schema([("price", pa.decimal128(9, 2))])
    assert choose_columns(InputConfig(paths=("in",)), task, [shard("a.parquet")], [price])[0] == price
