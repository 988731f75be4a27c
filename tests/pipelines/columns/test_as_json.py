"""Rows as JSON Lines: every type has a word, and answers come back from it as they were."""

import datetime as dt
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pj
import pytest

from batchloom.pipelines.columns import as_json
from batchloom.pipelines.columns.as_json import json_lines, json_schema

NOON = dt.datetime(2024, 1, 2, 12, 0, 0, 5, tzinfo=dt.UTC)
CASES: list[tuple[pa.DataType, Any, Any]] = [
    (pa.string(), "“é”\n\u2028 \U0001f600", "“é”\n\u2028 \U0001f600"),
    (pa.int64(), -(1 << 63), -(1 << 63)),
    (pa.uint64(), (1 << 64) - 1, (1 << 64) - 1),
    (pa.bool_(), True, True),
    (pa.null(), None, None),
    (pa.float64(), 0.1 + 0.2, 0.1 + 0.2),
    (pa.float64(), float("nan"), None),
    (pa.float32(), float("-inf"), None),
    (pa.float32(), 0.1, 0.1),
    (pa.float16(), np.float16(0.5), 0.5),
    (pa.date32(), dt.date(2024, 1, 2), "2024-01-02"),
    (pa.timestamp("us"), dt.datetime(9999, 1, 1), "9999-01-01 00:00:00.000000"),
    (pa.timestamp("us", "Europe/Berlin"), NOON, "2024-01-02 12:00:00.000005Z"),
    (pa.time64("us"), dt.time(1, 2, 3), "01:02:03.000000"),
    (pa.duration("ms"), dt.timedelta(seconds=1.5), 1500),
    (pa.decimal128(9, 2), Decimal("12.30"), "12.30"),
    (pa.binary(), b"\xff\x00", "/wA="),
    (pa.binary(2), b"ab", "YWI="),
    (pa.dictionary(pa.int8(), pa.string()), "x", "x"),
    (pa.map_(pa.string(), pa.float32()), [("a", 0.1)], [{"key": "a", "value": 0.1}]),
    (pa.list_(pa.list_(pa.float32())), [[0.1, None], None, []], [[0.1, None], None, []]),
    (pa.list_(pa.int8(), 2), [1, 2], [1, 2]),
    (pa.list_(pa.null()), [None, None], [None, None]),
    (pa.large_list(pa.null()), [None, None], [None, None]),
    (pa.list_(pa.list_(pa.null())), [[None, None], None, []], [[None, None], None, []]),
    (pa.large_list(pa.date32()), [dt.date(2024, 1, 2)], ["2024-01-02"]),
    (pa.struct([("a", pa.float32()), ("b", pa.binary())]), {"a": 0.1, "b": b"x"}, {"a": 0.1, "b": "eA=="}),
]


@pytest.mark.parametrize(("kind", "value", "expected"), CASES, ids=[f"{kind} {value!r}" for kind, value, _ in CASES])
def test_every_type_has_a_word_also_beside_nulls_and_in_slices(kind, value, expected) -> None:
    table = pa.table({"before": [1, 2, 3], "it": pa.array([value, None, value], kind)})
    for part in (table, table.slice(1), table.slice(2)):
        rows = [json.loads(line) for line in json_lines(part).splitlines()]
        assert [row["it"] for row in rows] == [expected, None, expected][3 - len(part) :]
    first = json_lines(table)
    assert first == json_lines(pa.concat_tables([table.slice(0, 1), table.slice(1)])), "chunks change no byte"
    options = pj.ParseOptions(explicit_schema=json_schema(table.schema))
    assert pj.read_json(pa.BufferReader(first), parse_options=options)["it"].to_pylist() == [expected, None, expected]


def test_bytes_of_a_text_that_are_no_utf8_are_replaced() -> None:
    column = pa.array([b"a\xffb", None, "é".encode()]).cast(pa.string(), safe=False)
    assert json_lines(pa.table({"it": column})).decode() == '{"it":"a\ufffdb"}\n{"it":null}\n{"it":"é"}\n'


def test_no_rows_are_no_lines() -> None:
    assert json_lines(pa.table({"it": pa.array([], pa.string())})) == b""


def test_every_float32_comes_back_as_it_was() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 20_000, dtype=np.uint32)
    numbers = bits.view(np.float32)
    table = pa.table({"it": numbers[np.isfinite(numbers)]})
    options = pj.ParseOptions(explicit_schema=table.schema)
    assert pj.read_json(pa.BufferReader(json_lines(table)), parse_options=options) == table


def test_large_rows_are_made_few_at_a_time_and_each_number_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list's numbers were formatted again for each slice of the rows: all 16,384 of a table, 16 times."""
    rng = np.random.default_rng(0)
    held = [None if row % 7 == 3 else rng.normal(size=(row % 5, 4)).astype(np.float32).tolist() for row in range(64)]
    table = pa.table({"states": pa.array(held, pa.list_(pa.list_(pa.float32())))}).slice(2)
    num_numbers = sum(4 * len(own) for own in held[2:] if own)
    whole = json_lines(table)
    sizes: list[int] = []
    is_finite = as_json.pc.is_finite

    def counted(numbers: pa.Array) -> pa.Array:
        sizes.append(len(numbers))
        return is_finite(numbers)

    monkeypatch.setattr(as_json.pc, "is_finite", counted)
    monkeypatch.setattr(as_json, "BYTES_AT_ONCE", table.nbytes // 10)
    assert json_lines(table) == whole
    assert [json.loads(line)["states"] is None for line in whole.splitlines()] == [own is None for own in held[2:]]
    assert sum(sizes) == num_numbers
    assert max(sizes) < num_numbers / 5
