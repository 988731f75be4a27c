"""Which parts a resumed job takes for done, and what it checks before it says that it has ended."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batchloom.pipelines.errors import JobError, OutputError
from batchloom.pipelines.ledger import ledger
from batchloom.pipelines.metrics import UnitRecord, totals
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.storage import Store

FINGERPRINT = "0123456789abcdef" * 4


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def records(put_part: Callable[..., UnitRecord], units: list[Unit]) -> list[UnitRecord]:
    """Three whole parts."""
    return [put_part(unit) for unit in units]


def whole(output: Path, units: list[Unit], kept: tuple[str, ...] = ()) -> list[UnitRecord]:
    store = Store(str(output))
    planned = {unit.part_name(FINGERPRINT): unit for unit in units}
    found = ledger.whole_parts(store, ledger.look(store), planned, kept)
    return sorted(found, key=lambda record: record.start)


def test_whole_parts_are_done(output, units, records) -> None:
    assert whole(output, units) == records
    assert [record.version for record in whole(output, units)] == [record.version for record in records]


def test_a_part_copied_over_another_one_is_named_and_computed_again(output, units, records, caplog) -> None:
    """The footer was not held against the name: ten rows were lost, ten were there twice, and verify was content."""
    shutil.copy(output / records[0].part, output / records[1].part)
    with caplog.at_level(logging.WARNING):
        assert whole(output, units) == [records[0], records[2]]
    assert f"{records[1].part} is computed again: its footer is that of {records[0].part}" in caplog.text


def test_a_part_of_another_version_of_the_shard_is_computed_again(output, units, records) -> None:
    """Names hold 12 digits of a unit's id, and the footer all 24."""
    other = replace(units[0], id=units[0].id[:12] + "0" * 12)
    assert whole(output, [other, *units[1:]]) == records[1:]


def test_a_part_that_the_manifest_names_otherwise_is_computed_again(output, units, records, put_part) -> None:
    """As if a part of an earlier run, whole in itself, had been put in the place of a later one."""
    (output / "_batchloom").mkdir(exist_ok=True)
    manifest = {
        "batchloom": "0", "job": {}, "fingerprint": FINGERPRINT, "fingerprint_of": {}, "versions": {},
        "totals": totals(records), "errors_by_kind": {}, "parts": [vars(record) for record in records],
        "timing": {"wall_seconds": 1.0, "units_computed": 3, "units_resumed": 0},
    }  # fmt: skip
    (output / "_batchloom" / "manifest.json").write_text(json.dumps(manifest))
    assert whole(output, units) == records
    put_part(units[2], errors=1)
    assert whole(output, units) == records[:2]


@pytest.mark.parametrize("content", [b"[]", b"{}", b"{", b"\xff", b'{"parts": 5}', b"[" * 100_000])
def test_a_manifest_that_is_damaged_costs_no_part(output, units, records, content: bytes) -> None:
    (output / "_batchloom").mkdir(exist_ok=True)
    (output / "_batchloom" / "manifest.json").write_bytes(content)
    assert whole(output, units) == records


def test_a_part_that_cannot_be_computed_again_is_no_silent_loss(output, units, records) -> None:
    part = output / records[2].part
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(OutputError, match=rf"{part.name}: it is not readable.*Its input is gone"):
        whole(output, units[:2], kept=(part.name,))


def test_parts_that_are_there_need_no_reading_at_the_end(output, records, monkeypatch) -> None:
    monkeypatch.setattr(Store, "read", lambda _, name: pytest.fail(f"{name} was read"))
    ledger.check_parts(Store(str(output)), records)


HARM: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "cut": lambda part: part.write_bytes(part.read_bytes()[:-5]),
    "replaced by other bytes of the same length": lambda part: part.write_bytes(bytes(part.stat().st_size)),
    "replaced by a folder": lambda part: (part.unlink(), part.mkdir()),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_part_that_is_lost_in_mid_run_is_named_at_the_end(output, records, harm) -> None:
    """The job said "all answered" and wrote _SUCCESS."""
    harm(output / records[1].part)
    with pytest.raises(JobError, match=rf"lost 1 of 3 parts while the job ran.*\({records[1].part}\)"):
        ledger.check_parts(Store(str(output)), records)


def test_an_output_that_is_lost_in_mid_run_is_named_at_the_end(output, records) -> None:
    shutil.rmtree(output)
    with pytest.raises(JobError, match="lost 3 of 3 parts"):
        ledger.check_parts(Store(str(output)), records)


def test_a_part_that_a_second_driver_wrote_again_is_the_same_part(output, units, records, put_part) -> None:
    again = put_part(units[1])
    assert again.version != records[1].version
    ledger.check_parts(Store(str(output)), records)


def test_rows_are_what_any_reader_sees(output, records) -> None:
    """The seal is in the footer, and no column knows of it."""
    table = pq.read_table(output)
    assert len(table) == sum(record.num_rows for record in records)
    assert table["id"].to_pylist() == list(range(30))
    assert table.schema.metadata is None
