"""The oracle compares an output with the expected answers, row by row. It shares no code with Batchloom."""

import gzip
import io
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = Mapping[str, Any]
ERROR_ROW: Row = {}  # what is expected of a row that cannot be answered
TOLERANCE = 1e-5  # of scores, which round by the rows of their batch


@dataclass(frozen=True)
class Verdict:
    """How an output differs from what was expected."""

    lost: int = 0
    """Rows that are not there."""
    twice: int = 0
    """Rows that are there once too often."""
    wrong: int = 0
    """Rows with another answer, with an error in place of an answer, or with an answer where there can be none."""

    @property
    def is_right(self) -> bool:
        return self == Verdict()

    def __add__(self, other: "Verdict") -> "Verdict":
        return Verdict(self.lost + other.lost, self.twice + other.twice, self.wrong + other.wrong)


def compare(expected: Mapping[int, Row], rows: Iterable[Row]) -> Verdict:
    """Judge rows by their ids. An error row whose input could not be read has no id: it stands for one such row."""
    seen: Counter[int] = Counter()
    num_nameless = num_wrong = 0
    for row in rows:
        if row["id"] is None:
            num_nameless += 1
            continue
        seen[row["id"]] += 1
        num_wrong += row["id"] not in expected or not is_as_expected(row, expected[row["id"]])
    absent = [row_id for row_id in expected if not seen[row_id]]
    num_excused = min(num_nameless, sum(expected[row_id] is ERROR_ROW for row_id in absent))
    return Verdict(
        lost=len(absent) - num_excused,
        twice=sum(count - 1 for count in seen.values()),
        wrong=num_wrong + num_nameless - num_excused,
    )


def is_as_expected(row: Row, expected: Row) -> bool:
    if expected is ERROR_ROW:
        return row["error"] is not None
    return row["error"] is None and all(_equal(row.get(name), value) for name, value in expected.items())


def _equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, float):
        return isinstance(found, float) and math.isclose(found, expected, abs_tol=TOLERANCE)
    if isinstance(expected, list | tuple):
        return isinstance(found, list | tuple) and len(found) == len(expected) and all(map(_equal, found, expected))
    if isinstance(expected, Mapping):
        return isinstance(found, Mapping) and all(_equal(found.get(name), value) for name, value in expected.items())
    return bool(found == expected)


def read_rows(filesystem: Any, folder: str) -> Iterator[Row]:
    """Yield the rows of all files that a reader of the folder sees; what cannot be read has no rows."""
    filesystem.invalidate_cache()
    try:
        paths = filesystem.find(folder)
    except FileNotFoundError:
        return
    for path in paths:
        name = path.removeprefix(folder.rstrip("/") + "/")
        if any(piece.startswith(("_", ".")) for piece in name.split("/")):
            continue
        with suppress(pa.ArrowException, OSError, EOFError, zlib.error, ValueError):
            yield from _rows(name, filesystem.cat_file(path))


def _rows(name: str, content: bytes) -> list[Row]:
    if name.endswith(".parquet"):
        return pq.read_table(io.BytesIO(content)).to_pylist()
    if name.endswith(".jsonl.gz"):
        return [json.loads(line) for line in gzip.decompress(content).splitlines()]
    return []
