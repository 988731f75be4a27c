"""What an expression chooses, and which ones are refused, with the place."""

import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pytest

from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.selection.selection import Selection

ROWS = pa.table(
    {
        "lang": ["en", "de", None, "en"],
        "text": ["ab\ncd", "x", None, "üüü"],
        "n": pa.array([1, 2, None, 2**53 + 1], pa.int64()),
        "f": pa.array([0.1, 2, None, float("nan")], pa.float32()),
        "u": pa.array([2**63 + 5, 1, None, 3], pa.uint64()),
        "d": pa.array([Decimal("1.50"), None, Decimal("2.00"), Decimal("0.10")]),
        "b": [True, False, None, True],
        "date": [dt.date(2024, 1, 1), None, dt.date(2023, 1, 1), dt.date(2025, 1, 1)],
        "t": pa.array([dt.datetime(2024, 1, 1), None, dt.datetime(2023, 1, 1, 5), None], pa.timestamp("ns")),
        "z": pa.array([dt.datetime(2024, 1, 1, tzinfo=dt.UTC), None, None, None], pa.timestamp("us", "Europe/Berlin")),
        "l": [["a"], [], None, ["a", "b"]],
        "nothing": pa.nulls(4),
        "zero": [0.0, -0.0, -0.0, 1.0],
        "hundreds": pa.array([Decimal(100)] * 4, pa.decimal128(5, -2)),
        "s": [{"a": 1}] * 4,
        "raw": pa.array([b"a", b"\xff", None, b"b"]),
        "doc.lang": ["x", "y", "x", "y"],
        "and": [1, 2, 3, 4],
        "error": pa.nulls(4),
    }
)


def source(name: str) -> Source:
    return Source(name, f"/in/{name}", 1, "v")


def chosen(where: str) -> list[int]:
    selection = Selection(where)
    selection.check_names(ROWS.column_names)
    selection.check_types(ROWS.schema)
    return [row for row, is_true in enumerate(selection.where_true(ROWS)[0]) if is_true]


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("lang = 'en' and length(text) > 4", [0]),
        ("not lang = 'en'", [1]),  # null is neither
        ("lang <> 'en' or lang is null", [1, 2]),
        ("lang in ('en', 'fr')", [0, 3]),
        ("lang not in ('en')", [1]),
        ("lang not in ('en') or n is null", [1, 2]),
        ("lang is not null AND NOT b", [1]),
        ("n > 1.5", [1, 3]),
        ("n = 9007199254740993", [3]),  # and not 9007199254740992.0
        ("n in (1, 2.5)", [0]),
        ("n between 1 and 2", [0, 1]),
        ("n not between 1 and 2", [3]),
        ("- 1 < n and n < 1e3", [0, 1]),
        ("f = 0.1", [0]),  # as the column has it
        ("f > 0", [0, 1]),
        ("f in (1, 0) or f not in (0.1, 2)", [3]),  # NaN is in no list
        ("zero = 0", [0, 1, 2]),
        ("zero in (0, 5)", [0, 1, 2]),
        ("zero not in (-0.0)", [3]),
        ("hundreds = 100 and hundreds < d", []),
        ("u > 9223372036854775808", [0]),
        ("u > -1", [0, 1, 3]),
        ("u in (3, 9223372036854775813)", [0, 3]),
        ("d >= 1.5", [0, 2]),
        ("d < n", [3]),
        ("n < f", []),
        ("b", [0, 3]),
        ("b = true and lang != 'de'", [0, 3]),
        ("date >= '2024-01-01'", [0, 3]),
        ("date < date '2024-01-01'", [2]),
        ("t between '2023-01-01' and timestamp '2023-01-01 05:00:00'", [2]),
        ("t = date '2024-01-01'", [0]),
        ("z >= '2024-01-01T01:00:00+01:00' and z = '2024-01-01'", [0]),
        ("text like '%b_c%'", [0]),  # any character, an end of a line too
        ("lower(lang) like 'E%'", []),
        ("text like 'ü__'", [3]),
        ("length(text) = 5", [0]),
        ("length(l) > 0", [0, 3]),
        ("nothing = 1 or nothing in (1, 2) or length(nothing) = 1", []),
        ("nothing is null and s is not null", [0, 1, 2, 3]),
        ("doc.lang = 'x' and \"and\" < 3", [0]),
        ('"doc"."lang" = \'x\'', [0, 2]),
        ("lang = 'it''s'", []),
        ("n = 1 or n = 2 and lang = 'en'", [0]),  # and before or
        ("(n = 1 or n = 2) and lang = 'de'", [1]),
    ],
)
def test_rows_for_which_it_is_true_are_chosen(where, rows) -> None:
    assert chosen(where) == rows


@pytest.mark.parametrize(
    ("where", "at", "words"),
    [
        ("langs = 'en'", 1, "there is no column 'langs'. Did you mean lang? There are: lang, text, n,"),
        ("Lang = 'en'", 1, "Did you mean lang?"),
        ('lang = "en"', 8, "there is no column 'en'"),
        ("lang = 3", 6, "column lang, text (string) and the number 3 cannot be compared. Texts stand in quotes: '3'"),
        ("n = '3'", 3, "Numbers stand without quotes"),
        ("date = t", 6, "cannot be compared"),
        ("t > '1500-01-01'", 3, "out of bounds"),
        ("t > '2024-01-01T00:00:00Z'", 3, "one has a time zone and the other has none"),
        ("t = 'yesterday'", 5, "is no date and time, which is written as '2024-12-31 23:59:59'"),
        ("s = 1", 3, "cannot be compared"),
        ("n = 0.1e-50", 5, "more digits than can be compared exactly"),
        ("length(n) > 2", 8, "length() takes text or a list; found column n, a number (int64)"),
        ("lang and b", 1, "and takes conditions; found column lang"),
        ("lang", 1, "the whole takes a condition"),
        ("n like 'a'", 1, "like takes text"),
        ("lang like text", 11, "like compares with a text in quotes"),
        ("lang in (text)", 10, "a list holds texts, numbers"),
        ("upper(lang) = 'A'", 1, "there is no function upper(). There are: length(), lower()"),
        ("lang = null", 8, "is asked for by is null"),
        ("lang == 'en'", 7, "Equality is written ="),
        ("and = 1", 1, 'A column of that name is written "and"'),
        ("lang = 'en", 8, "a quote ' opens and is never closed"),
        ("1 < n < 3", 7, "expected and, or, or the end; found '<'"),
        ("lang in ()", 10, "found ')'"),
        ("(lang = 'en'", 13, "expected ); found the end"),
        ("lang not = 'en'", 10, "expected in, like or between"),
        ("", 1, "found the end"),
        ("1 = 1", 1, "it names no column"),
        ("3x = 1", 1, "a number goes on with letters"),
        ("b; c", 2, "';' means nothing here"),
        ("(" * 200 + "b" + ")" * 200, 101, "nested more than 100 deep"),
        ("not " * 500 + "b", 401, "nested more than 100 deep"),
        (" or ".join(["b"] * 20_000), 5001, "more than 1,000 conditions. Many values of a column are a list"),
        ("n = 1e" + "9" * 30, 5, "is no number that can be compared"),
        ("length(" * 300, 701, "nested more than 100 deep"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(where, at, words) -> None:
    with pytest.raises(ConfigError) as refused:
        chosen(where)
    first, shown, mark = str(refused.value).split("\n")
    assert first.startswith(f"input.where: at character {at}, ")
    assert words in first
    assert mark.endswith("^")
    assert shown[len(mark) - 1 : len(mark)] == where[at - 1 : at]


@pytest.mark.parametrize(
    "where", ["n = 'LONG'", "LONG = 1", "n = date 'LONG'", "n in (LIST, 'a')", "LONG(n) = 1", "n LONG"]
)
def test_refusals_are_short_whatever_is_refused(where) -> None:
    where = where.replace("LONG", "x" * 9999).replace("LIST", ", ".join(map(str, range(9999))))
    with pytest.raises(ConfigError) as refused:
        chosen(where)
    assert len(str(refused.value)) < 600


def test_half_of_a_character_is_refused_in_words_that_can_be_printed() -> None:
    with pytest.raises(ConfigError, match=r"at character 10, '\\ud800' is half of a character") as refused:
        chosen("lang = 'a\ud800'")
    assert "lang = 'a?'" in str(refused.value).encode().decode()


def test_refusals_name_some_of_many_columns() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean column_7\?.* column_49 and 9950 more\.\n"):
        Selection("columns_7 = 1").check_names([f"column_{number}" for number in range(10_000)])


def test_a_row_whose_text_is_no_utf8_is_told_of() -> None:
    is_true, unclear = Selection("raw = 'a'").where_true(ROWS)
    assert is_true.tolist() == [True, False, False, False]
    assert {row: error.kind for row, error in unclear.items()} == {1: "not_utf8"}


@pytest.mark.parametrize(
    ("where", "is_excluded"),
    [
        ("lang = 'en'", True),
        ("lang = 'en' and text is null", True),
        ("lang in ('en', 'fr') and length(text) > 3", True),
        ("lang = 'en' or text is null", False),
        ("not (lang = 'de' or text is null)", True),
        ("not (lang = 'de' and text is null)", False),
        ("lang = 'de'", False),
        ("lang = other", False),
        ("text = 'x'", False),
        ("lang like 'e%' and day > '2024'", True),
        ("lang is null", True),
    ],
)
def test_a_file_is_left_out_where_its_partitions_make_it_false_whatever_its_rows_are(where, is_excluded) -> None:
    assert Selection(where).excludes(source("lang=de/day=2024-01-02/a.parquet")) is is_excluded
    assert not Selection(where).excludes(source("a.parquet"))
