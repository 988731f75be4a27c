"""A part tells by itself whether it is whole, and whose it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.pipelines.ledger.parts import FOOTER_KEY, is_part_name, read_footer, read_part, to_parquet
from batchloom.pipelines.metrics import UnitRecord
from batchloom.pipelines.planning.units import Unit

NOT_WHOLE = "its footer|its seal|it is not readable|it has .* rows"


@pytest.fixture
def part(put_part: Callable[..., UnitRecord], units: list[Unit], tmp_path: Path) -> Path:
    return tmp_path / "out" / put_part(units[0], errors=2).part


def rewritten(part: Path, change: Callable[[dict[str, Any]], Any], table: pa.Table | None = None) -> bytes:
    """The part as another program would write it: with a changed footer, or other rows, and page checksums that fit."""
    table = pq.read_table(part) if table is None else table
    footer = json.loads(pq.read_metadata(part).metadata[FOOTER_KEY])
    changed = change(footer)
    sink = pa.BufferOutputStream()
    metadata = {FOOTER_KEY: json.dumps(footer if changed is None else changed)}
    pq.write_table(table.replace_schema_metadata(metadata), sink, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def test_what_was_written_is_read_back(put_part, units, tmp_path) -> None:
    record = put_part(units[0], errors=2)
    content = (tmp_path / "out" / record.part).read_bytes()
    footer = read_part(record.part, content)
    assert footer.record == record
    assert (footer.unit, record.num_rows, record.num_errors) == (units[0].id, 10, 2)
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
    with pytest.raises(ValueError, match=r"it has 5 rows for rows 0 to 10 of a\.parquet"):
        read_part(part.name, half)


def test_a_part_with_other_rows_under_its_own_footer_is_not_whole(part: Path) -> None:
    table = pq.read_table(part)
    with pytest.raises(ValueError, match="its seal is broken"):
        read_part(part.name, rewritten(part, lambda _: None, table.take(pa.array([*range(9), 0]))))


FOOTERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no account": lambda _: {},
    "no account in a list": lambda _: [],
    "no account in a text": lambda _: "account",
    "account is a list": lambda footer: footer.update(account=[]),
    "account.num_rows is missing": lambda footer: footer["account"].pop("num_rows") and None,
    "account.num_rows is a text": lambda footer: footer["account"].update(num_rows="10"),
    "account.num_rows is true": lambda footer: footer["account"].update(num_rows=True),
    "account.start is null": lambda footer: footer["account"].update(start=None),
    "account.shard is a number": lambda footer: footer["account"].update(shard=5),
    "account.errors_by_kind is a list": lambda footer: footer["account"].update(errors_by_kind=[2]),
    "a count of errors is a text": lambda footer: footer["account"].update(errors_by_kind={"null_text": "2"}),
    "unit is a number": lambda footer: footer.update(unit=7),
    "unit is missing": lambda footer: footer.pop("unit") and None,
    "fingerprint is null": lambda footer: footer.update(fingerprint=None),
    "seal is a number": lambda footer: footer.update(seal=1),
    "seal is empty": lambda footer: footer.update(seal=""),
    "start and stop of another unit": lambda footer: footer["account"].update(start=10, stop=20),
    "another shard": lambda footer: footer["account"].update(shard="b.parquet"),
    "no seal": lambda footer: footer.update(sdal=footer.pop("seal")),
    "another unit": lambda footer: footer.update(unit="f" * 24),
}


@pytest.mark.parametrize("change", FOOTERS.values(), ids=FOOTERS)
def test_a_part_with_a_wrong_footer_is_not_whole(part: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """They were a KeyError, a TypeError, or passed for whole."""
    with pytest.raises(ValueError, match=r"its footer|its seal"):
        read_part(part.name, rewritten(part, change))


def test_a_part_of_an_older_version_is_read(part: Path) -> None:
    """It has no seal: its pages' checksums are verified instead."""
    old = rewritten(part, lambda footer: footer.pop("seal") and None)
    assert read_part(part.name, old).record.num_rows == 10
    harmed = bytearray(old)
    harmed[60] ^= 255
    with pytest.raises(ValueError, match="damaged"):
        read_part(part.name, bytes(harmed))


def test_figures_of_a_newer_version_are_no_obstacle(put_part, units, tmp_path) -> None:
    record = put_part(units[0])
    path = tmp_path / "out" / record.part
    footer = json.loads(pq.read_metadata(path).metadata[FOOTER_KEY])
    footer["account"]["num_of_something_new"] = 3
    path.write_bytes(to_parquet(pq.read_table(path), footer))
    assert read_footer(record.part, record.bytes, pq.read_metadata(path)).record.num_rows == 10
    assert read_part(record.part, path.read_bytes()).record.num_rows == 10
