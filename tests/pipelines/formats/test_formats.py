"""What files of every form give: the same rows wherever they are cut, and an error in the place of what is damaged."""

import gzip
import json
import lzma
import os
import re
from dataclasses import replace
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
from batchloom.pipelines.planning.planner import plan
from batchloom.pipelines.planning.shards import find_shards, sources_of
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.planning.units import Size, cut
from batchloom.pipelines.stages.reader import Reader
from tests.forms import FORMS, write
from tests.pipelines.finished import summaries

SIZES = (1, 200, 1 << 20)  # of row groups: of one record each, of some, of all


def rows_of(path: Path, rows_at_once: int = 7, **options: Any) -> tuple[pa.Schema, pa.Table]:
    """The schema of a lone file, and its rows as units read them, some at a time, each with a fresh reader."""
    config = InputConfig(paths=(str(path),), **options)
    (shard,), (schema,) = find_shards(config, None, Columns(("text",)))
    schema = shard.format.settled(schema)
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
    assert read[0].schema.equals(read[1].schema)
    assert read[0].schema.equals(read[2].schema)
    # Not equals(), for which a NaN is no NaN: repr() of floats has all of their digits, and the sign of a zero.
    assert repr(read[0].to_pylist()) == repr(read[1].to_pylist())
    assert repr(read[0].to_pylist()) == repr(read[2].to_pylist())
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
        {"text": "a", "n": 1, "grows": {"a": 1}, "never": {}, "time": "2024-01-01", "long": 2**60 + 1},
        {"text": "b", "n": 2.5, "grows": {"b": ["x"]}, "never": {}, "part": 0.5},
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
    assert read["long"].to_pylist() == [2**60 + 1, None, None, None]
    assert read["part"].to_pylist() == [None, 0.5, None, None]
    assert read["late"].to_pylist() == [None, None, [1, 2], []]
    assert not errors(read)


ATOMS = st.sampled_from([None, True, 0, -7, 2**53 + 1, -(2**63), 2**64, 10**30, 0.5, 1e300, "", "é", "2024-01-01"])
VALUES = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
)


@given(st.lists(VALUES, min_size=1, max_size=6))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_says_the_same_whatever_stands_beside_it(tmp_path_factory, values) -> None:
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "t", "v": value}) + "\n" for value in values))
    found = []
    for size in (1, 60, 1 << 20):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(scan, "ROW_GROUP_BYTES", size)
            found.append(rows_of(path)[1])
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
    assert not errors(found[0])
    assert all(map(says, found[0]["v"].to_pylist(), values)), found[0]["v"]


def says(read: Any, value: Any) -> bool:
    """Whether what was read tells all of a value: as it is, as its JSON, or with nulls for members of others."""
    if isinstance(read, str):
        return read == value if isinstance(value, str) else json.loads(read) == value
    if isinstance(read, list):
        return len(read) == len(value) and all(map(says, read, value))
    if isinstance(read, dict):
        return all(says(one, value.get(name)) for name, one in read.items()) and value.keys() <= read.keys()
    return bool(read == value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["12345678901234567890", "1"], ["12345678901234567890", "1"]),
        (["9007199254740993", "0.5"], ["9007199254740993", "0.5"]),
        (["[9007199254740993]", "[0.5]"], [["9007199254740993"], ["0.5"]]),
        (['{"a": 18446744073709551615}', '{"a": 1}'], [{"a": "18446744073709551615"}, {"a": "1"}]),
        (['{"a": [9007199254740993]}', '{"a": [1]}'], [{"a": [9007199254740993]}, {"a": [1]}]),
        (["9007199254740991", "0.5"], [9007199254740991.0, 0.5]),
        (["1e300", "7"], [1e300, 7.0]),
    ],
)
@pytest.mark.parametrize("is_one_file", [True, False])
def test_no_digit_of_a_whole_number_in_json_is_lost(tmp_path, monkeypatch, values, expected, is_one_file) -> None:
    """Arrow takes numbers of more than 64 bits, and whole numbers beside fractions, for floating point."""
    lines = [f'{{"text": "t", "n": {value}}}\n' for value in values]
    monkeypatch.setattr(scan, "ROW_GROUP_BYTES", 1 if len(lines[0]) % 2 else 1 << 20)
    for number, content in enumerate(["".join(lines)] if is_one_file else lines):
        (tmp_path / f"{number}.jsonl").write_text(content)
    assert kept(tmp_path, "n") == expected


def kept(folder: Path, column: str, **options: Any) -> list[Any]:
    """The values of a kept column, of all files of a folder together."""
    config = InputConfig(paths=(str(folder),), keep_columns=(column,), **options)
    job = plan(replace(summaries([str(folder)], folder.with_name("out")), input=config))
    reader = Reader(job.schema, {}, str(folder), format=job.format)
    spans = [(Span(shard.name, shard.source.identity, 0, shard.num_rows),) for shard in job.shards if shard.num_rows]
    tables = list(reader.tables(sources_of((one for (one,) in spans), job.shards_by_name), spans))
    assert not any(isinstance(table, Exception) for table in tables), tables
    return [value for table in tables for value in table[column].to_pylist()]


def test_types_hold_for_all_files_together(tmp_path) -> None:
    """A file without a row, or without a value, has no say; numbers keep their digits from file to file."""
    (tmp_path / "a.csv").write_text("text,n,long,none\n")
    (tmp_path / "b.csv").write_text("text,n,long,none\nx,,12345678901234567,\n")
    (tmp_path / "c.csv").write_text("text,n,long,none\ny,7,0.5,\n")
    assert kept(tmp_path, "n") == [None, 7]
    assert kept(tmp_path, "long") == ["12345678901234567", "0.5"]
    assert kept(tmp_path, "none") == ["", ""]
    objects = tmp_path / "objects"
    objects.mkdir()
    (objects / "a.jsonl").write_text('{"text": "x", "meta": {}}\n')
    (objects / "b.jsonl").write_text('{"text": "y", "meta": {"a": 1}}\n')
    assert kept(objects, "meta") == [{"a": None}, {"a": 1}]


@pytest.mark.parametrize("is_one_file", [True, False])
def test_values_of_no_common_type_are_texts_where_they_stand(tmp_path, is_one_file) -> None:
    """An odd member made text of the object around it, and of its other members there was no column any more."""
    rows = [
        {"doc": {"body": "a", "score": 1, "meta": {}}, "chat": [{"role": "user", "content": "Hello"}]},
        {"doc": {"body": 5, "score": "n/a", "meta": {}}, "chat": [{"role": "user", "content": [{"type": "text"}]}]},
        {"doc": {"body": "c", "score": 1.5}, "chat": None},
    ]
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [json.dumps(row) + "\n" for row in rows]
    for number, content in enumerate(["".join(lines)] if is_one_file else lines):
        (folder / f"{number}.jsonl").write_text(content)
    assert kept(folder, "doc.body", text_column="doc.body") == ["a", "5", "c"]
    assert kept(folder, "doc", text_column="doc.body") == [
        {"body": "a", "score": "1", "meta": "{}"},
        {"body": "5", "score": "n/a", "meta": "{}"},
        {"body": "c", "score": "1.5", "meta": None},
    ]
    assert [turns and turns[0]["content"] for turns in kept(folder, "chat", text_column="doc.body")] == [
        "Hello",
        '[{"type": "text"}]',
        None,
    ]


def test_keys_that_are_data_do_not_become_columns(tmp_path, monkeypatch) -> None:
    """Each new key was a member of all objects: two thousand lines took 750 MB, twenty thousand did not end."""
    rows = [{"text": "a", "users": {f"user{row}": {"score": row}}} for row in range(600)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = same_for_all_sizes(monkeypatch, path)
    assert [json.loads(users) for users in read["users"].to_pylist()] == [row["users"] for row in rows]
    path.write_text("".join(json.dumps({f"user{row}": row}) + "\n" for row in range(5000)))
    with pytest.raises(InputError, match="its objects have 5000 members of different names"):
        find_shards(InputConfig(paths=(str(path),)))


def test_numbers_of_csv_are_those_whose_texts_say_no_more(tmp_path, monkeypatch) -> None:
    columns = {
        "whole": (["1", "-2", ""], pa.int64()),
        "parts": (["1", "2.50", ""], pa.float64()),
        "zip": (["07031", "10001", "99501"], pa.string()),
        "long": (["12345678901234567", "5", "6"], pa.int64()),
        "account": (["12345678901234567", "5.5", "6"], pa.string()),
        "longer": (["12345678901234567890", "5", "6"], pa.string()),
        "mixed": (["1", "two", "3"], pa.string()),
        "phone": (["+4930123456", "+33123456", "+1555123"], pa.string()),
        "huge": (["1e400", "1", "2"], pa.string()),
        "odd": (["inf", "-inf", "NaN"], pa.float64()),
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
        ("a.csv", b'id,text\n1,"a\n', r"Where quotes are no more than text, set input\.csv\.quote: null"),
        ("a.csv", "id,pr\xe9nom\n1,a\n".encode("latin-1"), "can't decode byte 0xe9.*iconv -f LATIN1 -t UTF-8"),
        ("a.jsonl", '{"text": "pr\xe9nom"}\n'.encode("latin-1"), "can't decode byte 0xe9.*iconv -f LATIN1 -t UTF-8"),
        (
            "a.txt",
            gzip.compress(b"a\nb\n", mtime=0),
            r"it is compressed by gzip; decompress it, or let its name say so \(\.gz\)",
        ),
        (
            "a.jsonl.gz",
            gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0),
            "it is compressed by gzip; decompress it",
        ),
        ("a.csv", lzma.compress(b"text\na\n"), r"it is compressed by xz; decompress it, or compress it as \.gz"),
        ("a.parquet", gzip.compress(b"PAR1", mtime=0), "it is compressed by gzip; decompress it"),
        ("a.jsonl", b"PAR1\x15\x04", "it is Parquet; set input.format: parquet"),
        ("a.csv", b"id;text\n1,2;a\n", "none of its first 1 records can be read: .*Expected 1 columns, got 2"),
        ("a.parquet", b"no parquet", "Parquet magic bytes not found"),
    ],
)
def test_a_file_of_which_nothing_can_be_known_is_refused(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"(?s)1 of 1 input files cannot be read as .*{message}"):
        find_shards(InputConfig(paths=(str(tmp_path),)))


def test_what_a_column_is_called_is_explained_where_it_is_not_found(tmp_path) -> None:
    folder = tmp_path / "lang=en"
    folder.mkdir()
    for content, message in (
        (b"id;text\n1;a\n", "It has: id;text. Names are what the first record says, and between columns is ','"),
        (b"text\na\n", "For the partitions 'lang', let input.paths name the folder above them."),
        (b"", "The files of the input are empty"),
    ):
        (folder / "a.csv").write_bytes(content)
        with pytest.raises(InputError, match=re.escape(message)):
            kept(folder, "lang")


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
    path.write_bytes(b'text,n\n"say ""hi""",1\n')
    _, read = rows_of(path, csv=CsvConfig(escape='"'))  # as Spark has it
    assert read["text"].to_pylist() == ['say "hi"']
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
