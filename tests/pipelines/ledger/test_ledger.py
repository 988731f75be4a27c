"""Which parts a resumed job takes for done, and what it checks before it says that it has ended."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.errors import JobError
from batchloom.pipelines.ledger import ledger
from batchloom.pipelines.ledger.register import Register
from batchloom.pipelines.planning.units import Part
from batchloom.pipelines.stores.storage import Store


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def records(put_part: Callable[..., PartRecord], planned: list[Part]) -> list[PartRecord]:
    """Three whole parts."""
    return [put_part(part) for part in planned]


def whole(output: Path) -> tuple[list[PartRecord], dict[str, str]]:
    store = Store(str(output))
    found = ledger.look(store)
    register, wrong = ledger.whole_parts(store, found, sorted(found.parts))
    return list(register.sorted()), wrong


def log_records(output: Path, records: list[PartRecord]) -> None:
    with ledger.RecordLog(Store(str(output))) as log:
        for record in records:
            log.add(record)


def test_whole_parts_are_done(output, records) -> None:
    found, wrong = whole(output)
    assert (found, wrong) == (records, {})
    assert [record.version for record in found] == [record.version for record in records]


def test_parts_that_are_as_their_records_say_are_not_read(output, records, monkeypatch) -> None:
    log_records(output, records)
    (output / records[1].part).touch()  # another version: read, and found whole
    read = []
    monkeypatch.setattr(Store, "read", lambda self, name, read_it=Store.read: read.append(name) or read_it(self, name))
    assert whole(output) == (records, {})
    assert [name for name in read if name.startswith("part-")] == [records[1].part]


@pytest.mark.parametrize("content", [b"", b"[]", b"PAR1", b"\xff" * 1000])
def test_records_that_are_damaged_cost_no_part(output, records, content: bytes) -> None:
    log_records(output, records)
    (path,) = (output / ledger.RECORDS).iterdir()
    path.write_bytes(content)
    assert whole(output) == (records, {})


def test_records_of_parts_that_are_gone_are_not_believed(output, records) -> None:
    log_records(output, records)
    (output / records[1].part).unlink()
    assert whole(output) == ([records[0], records[2]], {})


def test_a_part_copied_over_another_one_is_named(output, records) -> None:
    """The footer was not held against the name: ten rows were lost, ten were there twice, and verify was content."""
    log_records(output, records)
    shutil.copy(output / records[0].part, output / records[1].part)
    assert whole(output) == ([records[0], records[2]], {records[1].part: f"its footer is that of {records[0].part}"})


def test_a_part_that_was_cut_is_named(output, records) -> None:
    log_records(output, records)
    part = output / records[2].part
    part.write_bytes(part.read_bytes()[:-1])
    found, wrong = whole(output)
    assert found == records[:2]
    assert "it is not readable as Parquet" in wrong[part.name]


def test_parts_that_are_there_need_no_reading_at_the_end(output, records, monkeypatch) -> None:
    monkeypatch.setattr(Store, "read", lambda _, name: pytest.fail(f"{name} was read"))
    ledger.check_parts(Store(str(output)), Register.of(records))


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
        ledger.check_parts(Store(str(output)), Register.of(records))


def test_an_output_that_is_lost_in_mid_run_is_named_at_the_end(output, records) -> None:
    shutil.rmtree(output)
    with pytest.raises(JobError, match="lost 3 of 3 parts"):
        ledger.check_parts(Store(str(output)), Register.of(records))


def test_a_part_that_a_second_driver_wrote_again_is_the_same_part(output, planned, records, put_part) -> None:
    again = put_part(planned[1])
    assert again.version != records[1].version
    ledger.check_parts(Store(str(output)), Register.of(records))


def test_rows_are_what_any_reader_sees(output, records) -> None:
    """The seal is in the footer, and no column knows of it."""
    table = pq.read_table(output)
    assert len(table) == sum(record.num_rows for record in records)
    assert table["id"].to_pylist() == list(range(30))
    assert table.schema.metadata is None
