"""What files of every form give: the same rows wherever they are cut, and an error in the place of what is damaged."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchloom.pipelines.config import CsvConfig, InputConfig
from batchloom.pipelines.errors import InputError
from batchloom.pipelines.formats import contents, scan
from batchloom.pipelines.formats.base import Columns
from batchloom.pipelines.planning.shards import find_shards, sources_of
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.planning.units import Size, cut
from batchloom.pipelines.stages.reader import Reader
from tests.forms import FORMS, write

SIZES = (1, 200, 1 << 20)  # of row groups: of one record each, of some, of all


def rows_of(path: Path, rows_at_once: int = 7, **options: Any) -> tuple[pa.Schema, pa.Table]:
    """The schema of a lone file, and its rows as units read them, some at a time, each with a fresh reader."""
    config = InputConfig(paths=(str(path),), **options)
    (shard,), (schema,) = find_shards(config, None, Columns(("text",)))
    assert len(shard.read_bytes) == len(shard.row_groups)
    tables = []
    for start, stop in cut(shard.pieces(0, shard.num_rows), Size(rows_at_once, 1 << 60)):
        span = Span(shard.name, shard.source.identity, start, stop)
        reader = Reader(schema, {}, str(path), format=shard.format)
        (table,) = reader.tables(sources_of([span], {shard.name: shard}), [[span]])
        assert isinstance(table, pa.Table), table
        tables.append(table)
    return schema, pa.concat_tables(tables)


def same_for_all_sizes(monkeypatch: pytest.MonkeyPatch, path: Path, **options: Any) -> pa.Table:
    read = []
    for size in SIZES:
        monkeypatch.setattr(scan, "ROW_GROUP_BYTES", size)
        read.append(rows_of(path, **options)[1])
    assert read[0].equals(read[1])
    assert read[0].equals(read[2])
    return read[0]


def errors(table: pa.Table) -> dict[int, str]:
    return {row: error["message"] for row, error in enumerate(table["error"].to_pylist()) if error}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_rows_that_were_written(tmp_path, monkeypatch, make_sentences, form) -> None:
    monkeypatch.setattr(contents, "FETCHED_BYTES", 512)
    table = pa.table({"id": range(90), "text": make_sentences(90), "score": [row / 8 for row in range(90)]})
    read = same_for_all_sizes(monkeypatch, write(table, tmp_path, "a", form))
    assert read["error"].null_count == 90
    assert read.drop_columns(["error"]).equals(table.select(["text"]) if ".txt" in form else table)


def test_types_hold_for_the_whole_file_wherever_it_is_cut(tmp_path, monkeypatch) -> None:
    """Columns that are there in some lines alone, numbers that become texts, objects that gain members."""
    rows: list[dict[str, Any]] = [
        {"text": "a", "n": 1, "grows": {"a": 1}, "never": {}, "time": "2024-01-01", "big": 2**53 + 1},
        {"text": "b", "n": 2.5, "grows": {"b": ["x"]}, "never": {}, "big": 10**30},
        {"text": None, "n": "three", "grows": None, "late": [1, 2]},
        {"text": "d", "n": {"deep": [True]}, "late": []},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = same_for_all_sizes(monkeypatch, path)
    assert read["n"].to_pylist() == ["1", "2.5", "three", '{"deep": [true]}']
    assert read["grows"].to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": ["x"]}, None, None]
    assert read["never"].to_pylist() == ["{}", "{}", None, None]
    assert read["time"].to_pylist() == ["2024-01-01", None, None, None]
    assert read["big"].type == pa.float64()
    assert read["late"].to_pylist() == [None, None, [1, 2], []]
    assert not errors(read)


def test_numbers_of_csv_are_those_whose_texts_say_no_more(tmp_path, monkeypatch) -> None:
    columns = {
        "whole": (["1", "-2", ""], pa.int64()),
        "parts": (["1", "2.50", ""], pa.float64()),
        "zip": (["07031", "10001", "99501"], pa.string()),
        "long": (["12345678901234567", "5", "6"], pa.int64()),
        "account": (["12345678901234567", "5.5", "6"], pa.string()),
        "longer": (["12345678901234567890", "5", "6"], pa.string()),
        "mixed": (["1", "two", "3"], pa.string()),
        "empty": (["", "", ""], pa.string()),
        "day": (["2024-01-01", "2024-01-02", ""], pa.string()),
    }
    path = tmp_path / "a.csv"
    lines = [",".join(columns), *(",".join(values[row] for values, _ in columns.values()) for row in range(3))]
    path.write_text("\n".join(lines))
    read = same_for_all_sizes(monkeypatch, path)
    assert {name: read[name].type for name in columns} == {name: kind for name, (_, kind) in columns.items()}
    assert read["whole"].to_pylist() == [1, -2, None]
    assert read["zip"].to_pylist() == ["07031", "10001", "99501"]
    assert read["empty"].to_pylist() == ["", "", ""]


FIELDS = st.text(st.sampled_from('ab,"\n\ré '), max_size=12)


@given(
    st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=12),
    st.sampled_from(SIZES),
    st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_quoted_fields_hold_ends_of_lines_and_delimiters(tmp_path_factory, rows, size, end) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    quoted = [[f'"{field.replace(chr(34), chr(34) * 2)}"' for field in row] for row in [("text", "more"), *rows]]
    path.write_bytes("".join(",".join(row) + end for row in quoted).encode())
    before, scan.ROW_GROUP_BYTES = scan.ROW_GROUP_BYTES, size
    try:
        _, read = rows_of(path)
    finally:
        scan.ROW_GROUP_BYTES = before
    assert list(zip(read["text"].to_pylist(), read["more"].to_pylist(), strict=True)) == rows


@pytest.mark.parametrize("form", [".jsonl", ".csv", ".txt", ".jsonl.gz"])
def test_a_record_may_be_longer_than_what_is_read_at_once(tmp_path, monkeypatch, form) -> None:
    monkeypatch.setattr(scan, "SCANNED_BYTES", 1000)
    table = pa.table({"text": ["short", "long " * 20_000, "short again"]})
    read = same_for_all_sizes(monkeypatch, write(table, tmp_path, "a", form))
    assert read["text"].to_pylist() == table["text"].to_pylist()


def test_damaged_lines_are_errors_and_their_neighbours_are_answered(tmp_path, monkeypatch) -> None:
    good = [json.dumps({"id": row, "text": f"text {row}"}).encode() for row in range(60)]
    bad = {
        3: b'{"id": 3, "text": "cut',
        4: b'{"id": 4, "text": "\xff\xfe"}',
        20: b"no json",
        21: b"[1, 2]",
        30: b'{"id": 30}{"id": 30}',
        40: b'{"a":' + b"[" * 200_000,  # Arrow's parser overflowed the stack
        41: b'{"text": "\\ud800"}',
        59: b'{"id": 59, "te',
    }
    lines = [bad.get(row, line) for row, line in enumerate(good)]
    lines.insert(10, b"  ")  # an empty line is no row
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    read = same_for_all_sizes(monkeypatch, path)
    assert list(errors(read)) == list(bad)
    assert read["text"].to_pylist() == [None if row in bad else f"text {row}" for row in range(60)]
    assert {error["kind"] for error in read["error"].to_pylist() if error} == {"damaged_input"}


def test_rows_of_csv_with_too_many_or_too_few_fields_are_errors(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,a\n2,b,c\n\n3\n4,"d\ne"\n5,\xe9\n6,f"g\n')
    read = same_for_all_sizes(monkeypatch, path)
    assert list(errors(read)) == [1, 2, 4]
    assert "Expected 2 columns, got 3" in errors(read)[1]
    assert read["text"].to_pylist() == ["a", None, None, "d\ne", None, 'f"g']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(os.urandom(90_000).hex().encode())[:-99], "Truncated compressed stream"),
        ("a.jsonl.gz", b"no gzip", "zlib inflate failed"),
        ("a.json", b'[\n{"text": "a"},\n{"text": "b"}\n]', r"it holds a JSON array.*jq -c '\.\[\]'"),
        ("a.jsonl", b'{\n  "text": "a"\n}\n', "its objects have several lines"),
        ("a.jsonl", b"no\njson\n", "none of its first 2 records can be read: Expecting value"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "it is UTF-16; convert it to UTF-8"),
        ("a.csv", b'id,text\n1,"a\n2,b\n', "the record at byte 8 does not end: is a quote opened and never closed"),
        ("a.csv", b"id;text\n1,2;a\n", "none of its first 1 records can be read: .*Expected 1 columns, got 2"),
        ("a.parquet", b"no parquet", "Parquet magic bytes not found"),
    ],
)
def test_a_file_of_which_nothing_can_be_known_is_refused(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"(?s)1 of 1 input files cannot be read as .*{message}"):
        find_shards(InputConfig(paths=(str(tmp_path),)))


def test_bytes_that_change_after_planning_are_errors_and_no_row_is_lost(tmp_path) -> None:
    """Damage to a compressed file reaches to its end."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(
        gzip.compress("".join(json.dumps({"text": os.urandom(20).hex()}) + "\n" for _ in range(900)).encode())
    )
    (shard,), (schema,) = find_shards(InputConfig(paths=(str(path),)))
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    span = Span(shard.name, shard.source.identity, 0, 900)
    (table,) = Reader(schema, {}, str(path), format=shard.format).tables(
        {shard.name: shard.source_of(0, 900)}, [[span]]
    )
    assert isinstance(table, pa.Table)
    assert table.num_rows == 900
    assert table["error"].null_count < 900


def test_csv_of_other_habits(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"1;'it\\'s; fine'\n2;'x'\n")
    _, read = rows_of(path, csv=CsvConfig(header=False, delimiter=";", quote="'", escape="\\"))
    assert read.drop_columns(["error"]).to_pylist() == [{"f0": 1, "f1": "it's; fine"}, {"f0": 2, "f1": "x"}]
    path = tmp_path / "a.tsv"
    path.write_bytes(b'text\tn\n"a\t1\n')
    _, read = rows_of(path, csv=CsvConfig(quote=None))
    assert read["text"].to_pylist() == ['"a']


def test_a_file_may_be_a_row(tmp_path) -> None:
    for name, content in (("a.txt", "one\n\ntwo"), ("b.txt", "")):
        (tmp_path / name).write_text(content)
    shards, (schema, _) = find_shards(InputConfig(paths=(str(tmp_path),), format="documents"), None, Columns(("text",)))
    spans = [(Span(shard.name, shard.source.identity, 0, 1),) for shard in shards]
    tables = Reader(schema, {}, str(tmp_path), format=shards[0].format).tables(
        {s.name: s.source for s in shards}, spans
    )
    assert [table["text"].to_pylist() for table in tables] == [["one\n\ntwo"], [""]]


def test_empty_files_have_no_rows_and_no_say_in_the_columns(tmp_path) -> None:
    for name, content in (("a.csv", b""), ("b.csv", b"text\n"), ("c.csv", b"text\nx\n")):
        (tmp_path / name).write_bytes(content)
    shards, _ = find_shards(InputConfig(paths=(str(tmp_path),)))
    assert [shard.num_rows for shard in shards] == [0, 0, 1]
