from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from batchloom.jobs.reports import wording
from batchloom.jobs.terminal.row_table import RowTable, shared_widths


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"),
     (3600, "1 h 00 min"), (86399, "23 h 59 min"), (90000, "1 d 1 h")],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: float, words: str) -> None:
    assert wording.duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**30, "5.0 GiB"), (2**60, "1048576.0 TiB")],
)
def test_sizes_are_binary(count: int, words: str) -> None:
    assert wording.size(count) == words


@pytest.mark.parametrize(("rate", "words"), [(0.123, "0.12"), (8.34, "8.3"), (99.96, "100.0"), (5302.4, "5,302")])
def test_rates_have_about_three_figures(rate: float, words: str) -> None:
    assert wording.rate(rate) == words


def test_an_outcome_names_errors_by_how_often_they_are() -> None:
    totals = {"rows": 1200, "ok": 1196, "errors": 4}
    kinds = {"null_text": 1, "too_long": 3}
    assert wording.outcome(totals, kinds) == "1,200 rows, 1,196 answered, 4 errors (3 too_long, 1 null_text)"
    assert wording.outcome({"rows": 1, "ok": 1, "errors": 0}, {}) == "1 row, all answered"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # other processes decide the time
@example([45, 107, 107], 258)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(8, 300))
def test_shared_widths_fit_and_shorten_only_what_is_wide(wanted: list[int], room: int) -> None:
    widths = shared_widths(wanted, room)
    assert sum(widths) <= room
    assert all(1 <= width <= want for width, want in zip(widths, wanted, strict=True))
    shortened = [width for width, want in zip(widths, wanted, strict=True) if width < want]
    whole = [width for width, want in zip(widths, wanted, strict=True) if width == want]
    assert not shortened or sum(widths) > room - len(wanted)
    assert not shortened or max(whole, default=0) <= max(shortened) + 1  # 213 for two is 106 and 107


@pytest.mark.parametrize(
    ("held", "words"),
    [(None, ""), (0.5021752715110779, "0.5022"), (["a b", "c"], "a b, c"), ([0.25, None], "0.25, "), (7, "7"),
     ([{"word": "Ada", "score": 0.98765}], "word: Ada, score: 0.9877"), (" two\n lines ", "two lines"), (True, "True"),
     ([[1] * 101], ", ".join(["1"] * 100) + ", …")],
)  # fmt: skip
def test_a_value_is_one_short_line(held: object, words: str) -> None:
    assert wording.value(held) == words


ERROR = {"stage": "prepare", "kind": "null_text", "message": "column 'text' is null"}
ROWS = [
    {"id": 1, "summary_text": "one [bold]line[/bold]\nand  another", "error": None},
    {"id": 2, "summary_text": None, "error": ERROR},
]


def drawn(width: int, rows: Sequence[dict[str, Any]] = ROWS, **options: Any) -> list[str]:
    console = Console(width=width, force_terminal=False, color_system=None, markup=False)
    with console.capture() as captured:
        console.print(RowTable(rows, list(rows[0])[:2], **options), crop=False)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_a_row_is_a_line_and_an_error_stands_where_its_answer_would() -> None:
    assert drawn(60) == [
        "id  summary_text",
        "1   one [bold]line[/bold] and another",
        "2   null_text: column 'text' is null",
    ]


@pytest.mark.parametrize("width", [20, 60, 100])
def test_what_people_copy_is_never_shortened(width: int) -> None:
    """Ids of jobs were cut in terminals of 150 columns, beside outputs that had room."""
    rows = [{"job": "batchloom-summaries-20261127-051324-be41", "output": "s3://bucket/" + "long/" * 20}]
    said = "\n".join(drawn(width, rows, whole=["job"]))
    assert rows[0]["job"] in said
    assert "…" in said


def test_where_a_table_would_be_too_narrow_rows_are_records() -> None:
    assert drawn(22) == [
        "id: 1", "summary_text: one [bo…", "", "id: 2", "summary_text: null_te…",
    ]  # fmt: skip
