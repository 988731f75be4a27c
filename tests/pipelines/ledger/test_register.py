"""Records of parts as a table: which are taken, and that a file gives back what was written."""

from collections.abc import Callable

import pyarrow as pa
import pytest

from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.ledger.register import SCHEMA, Register
from batchloom.pipelines.ledger.sealed import Sealed, sealed
from batchloom.pipelines.planning.units import Part


@pytest.fixture
def register(put_part: Callable[..., PartRecord], planned: list[Part]) -> Register:
    """Three records."""
    return Register.of(put_part(part) for part in planned)


@pytest.mark.parametrize("numbers", [[], [0, 1, 2], [1], [2, 0], [1, 1, 1], [2, 1, 0], [0, 1]])
def test_records_are_taken_by_their_numbers(register: Register, numbers: list[int]) -> None:
    assert list(register.rows(numbers)) == [register[number] for number in numbers]
    assert len(Register.of([]).rows([])) == 0


def test_a_register_that_was_read_is_written_to_the_same_bytes(register: Register) -> None:
    read = Register.read(register.to_bytes())
    assert list(read) == list(register)
    assert read.table.schema.metadata is None, "a footer is not part of the next file"
    assert Register.joined([read, register.rows([0])]).table.num_rows == 4
    assert read.to_bytes() == register.to_bytes()


def test_a_sealed_table_has_the_types_that_are_asked_for(register: Register) -> None:
    """Files of earlier versions may have smaller ones; another column is no such file."""
    narrow = pa.schema([field.with_type(pa.int32()) if field.name == "num_rows" else field for field in SCHEMA])
    older = Sealed.of(sealed(register.table.cast(narrow), {}))
    assert older.table(SCHEMA).schema.equals(SCHEMA, check_metadata=True)
    assert older.table(SCHEMA)["num_rows"].to_pylist() == register.table["num_rows"].to_pylist()
    with pytest.raises(ValueError, match="names"):
        older.table(pa.schema([("others", pa.int64())]))
    with pytest.raises(ValueError, match="its columns are others"):
        Register.read(sealed(pa.table({"others": [1]}), {}))
