"""A part tells by itself whether it is whole, and whose it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.ledger.parts import is_part_name, read_footer, read_part
from batchloom.pipelines.ledger.sealed import FOOTER_KEY, sealed
from batchloom.pipelines.planning.units import Part

NOT_WHOLE = "its footer|its seal|it is not readable|it has .* rows"


@pytest.fixture
def part(put_part: Callable[..., PartRecord], planned: list[Part], tmp_path: Path) -> Path:
    return tmp_path / "out" / put_part(planned[0], errors=2).part


def rewritten(part: Path, change: Callable[[dict[str, Any]], Any], table: pa.Table | None = None) -> bytes:
    """The part as another program would write it: with a changed footer, or other rows, and page checksums that fit."""
    table = pq.read_table(part) if table is None else table
    footer = json.loads(pq.read_metadata(part).metadata[FOOTER_KEY])
    changed = change(footer)
    sink = pa.BufferOutputStream()
    metadata = {FOOTER_KEY: json.dumps(footer if changed is None else changed)}
    pq.write_table(table.replace_schema_metadata(metadata), sink, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def test_what_was_written_is_read_back(put_part, planned, tmp_path) -> None:
    record = put_part(planned[0], errors=2)
    content = (tmp_path / "out" / record.part).read_bytes()
    footer = read_part(record.part, content)
    assert footer.record == record
    assert (record.spans, record.num_rows, record.num_errors) == (planned[0].spans, 10, 2)
    assert record.errors_by_kind == {"null_text": 2}
    assert is_part_name(record.part)


def test_no_byte_of_a_part_can_change_unseen(part: Path) -> None:
    """Page checksums do not cover the footer: a flipped bit there gave other figures, or another column's name."""
    content = part.read_bytes()
    for place in range(len(content)):
        harmed = bytearray(content)
        harmed[place] ^= 1 << place % 8
        with pytest.raises(ValueError, match=NOT_WHOLE):
            read_part(part.name, bytes(harmed))


@pytest.mark.parametrize("stop", [0, 3, 60, -1])
def test_a_part_that_was_cut_is_not_whole(part: Path, stop: int) -> None:
    with pytest.raises(ValueError, match="not readable as Parquet"):
        read_part(part.name, part.read_bytes()[:stop])


def test_a_part_under_another_name_is_not_whole(part: Path) -> None:
    name = part.name.replace("000000000-000000010", "000000010-000000020")
    with pytest.raises(ValueError, match=f"its footer is that of {part.name}"):
        read_part(name, part.read_bytes())


def test_a_part_with_half_of_its_rows_is_not_whole(part: Path) -> None:
    half = rewritten(part, lambda _: None, pq.read_table(part).slice(0, 5))
    with pytest.raises(ValueError, match=r"its seal is broken"):
        read_part(part.name, half)


def test_a_part_with_other_rows_under_its_own_footer_is_not_whole(part: Path) -> None:
    table = pq.read_table(part)
    with pytest.raises(ValueError, match="its seal is broken"):
        read_part(part.name, rewritten(part, lambda _: None, table.take(pa.array([*range(9), 0]))))


FOOTERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no account": lambda _: {},
    "no account in a list": lambda _: [],
    "no account in a text": lambda _: "counts",
    "counts is a list": lambda footer: footer.update(counts=[]),
    "counts.num_rows is missing": lambda footer: footer["counts"].pop("num_rows") and None,
    "counts.num_rows is a text": lambda footer: footer["counts"].update(num_rows="10"),
    "counts.num_rows is true": lambda footer: footer["counts"].update(num_rows=True),
    "counts.num_rows is another": lambda footer: footer["counts"].update(num_rows=11),
    "counts.errors_by_kind is a list": lambda footer: footer["counts"].update(errors_by_kind=[2]),
    "a count of errors is a text": lambda footer: footer["counts"].update(errors_by_kind={"null_text": "2"}),
    "spans is missing": lambda footer: footer.pop("spans") and None,
    "spans is a number": lambda footer: footer.update(spans=7),
    "no spans": lambda footer: footer.update(spans=[]),
    "a span has no stop": lambda footer: footer["spans"][0].pop() and None,
    "a span's start is null": lambda footer: footer["spans"][0].__setitem__(2, None),
    "a span's shard is a number": lambda footer: footer["spans"][0].__setitem__(0, 5),
    "a span has no rows": lambda footer: footer["spans"][0].__setitem__(2, 10),
    "fingerprint is null": lambda footer: footer.update(fingerprint=None),
    "layout is null": lambda footer: footer.update(layout=None),
    "seal is a number": lambda footer: footer.update(seal=1),
    "seal is empty": lambda footer: footer.update(seal=""),
    "rows of another part": lambda footer: footer["spans"][0].__setitem__(slice(2, 4), [10, 20]),
    "another shard": lambda footer: footer["spans"][0].__setitem__(0, "b.parquet"),
    "another version of the shard": lambda footer: footer["spans"][0].__setitem__(1, "f" * 16),
    "no seal": lambda footer: footer.update(sdal=footer.pop("seal")),
}


@pytest.mark.parametrize("change", FOOTERS.values(), ids=FOOTERS)
def test_a_part_with_a_wrong_footer_is_not_whole(part: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """They were a KeyError, a TypeError, or passed for whole."""
    with pytest.raises(ValueError, match=r"its footer|its seal"):
        read_part(part.name, rewritten(part, change))


CONTENTS = {name: change for name, change in FOOTERS.items() if "seal" not in name and "account" not in name}


@pytest.mark.parametrize("change", CONTENTS.values(), ids=CONTENTS)
def test_a_sealed_part_with_a_wrong_footer_is_not_whole(part: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Its bytes are as they were written, by somebody else."""
    footer = json.loads(pq.read_metadata(part).metadata[FOOTER_KEY])
    change(footer)
    with pytest.raises(ValueError, match=r"its footer|it has 10 rows, and by its footer 11"):
        read_part(part.name, sealed(pq.read_table(part), footer))


def test_figures_of_a_newer_version_are_no_obstacle(put_part, planned, tmp_path) -> None:
    record = put_part(planned[0])
    path = tmp_path / "out" / record.part
    footer = json.loads(pq.read_metadata(path).metadata[FOOTER_KEY])
    footer["counts"]["num_of_something_new"] = 3
    path.write_bytes(sealed(pq.read_table(path), footer))
    assert read_footer(record.part, record.bytes, pq.read_metadata(path)).record.num_rows == 10
    assert read_part(record.part, path.read_bytes()).record.num_rows == 10
