"""The oracle is a judge, so it is judged: each way in which an output can be wrong is told apart."""

import pytest

from tests.faults.oracle import ERROR_ROW, Verdict, compare

EXPECTED = {1: {"id": 1, "label": "a", "score": 0.5}, 2: {"id": 2, "label": "b", "score": 0.25}, 3: ERROR_ROW}
ONE, TWO = ({**EXPECTED[row_id], "error": None} for row_id in (1, 2))
FAILED = {"kind": "damaged_input"}
THREE = {"id": 3, "label": None, "score": None, "error": FAILED}
NAMELESS = {**THREE, "id": None}


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([ONE, TWO, THREE], Verdict()),
        ([ONE, {**TWO, "score": 0.25 + 1e-6}, THREE], Verdict()),
        ([ONE, TWO, NAMELESS], Verdict()),
        ([ONE, THREE], Verdict(lost=1)),
        ([], Verdict(lost=3)),
        ([ONE, TWO, TWO, THREE], Verdict(twice=1)),
        ([ONE, ONE, THREE], Verdict(lost=1, twice=1)),
        ([ONE, {**TWO, "label": "a"}, THREE], Verdict(wrong=1)),
        ([ONE, {**TWO, "score": 0.3}, THREE], Verdict(wrong=1)),
        ([ONE, {**TWO, "score": float("nan")}, THREE], Verdict(wrong=1)),
        ([ONE, {**TWO, "error": FAILED}, THREE], Verdict(wrong=1)),
        ([ONE, TWO, {**THREE, "label": "a", "error": None}], Verdict(wrong=1)),
        ([ONE, NAMELESS, THREE], Verdict(lost=1, wrong=1)),
        ([ONE, TWO, THREE, {**ONE, "id": 4}], Verdict(wrong=1)),
    ],
)
def test_every_difference_is_counted_once(rows, verdict) -> None:
    assert compare(EXPECTED, rows) == verdict
