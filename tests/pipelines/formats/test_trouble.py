"""Trouble of a store while files of records are read is no damage, and damage on the way is fetched again."""

import hashlib
from collections.abc import Iterator

import pyarrow as pa
import pytest

from batchloom.models import patience as patience_module
from batchloom.models.patience import Patience
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import JobError, StoreError
from batchloom.pipelines.formats import scan
from batchloom.pipelines.planning.shards import find_shards
from tests.forms import write
from tests.pipelines.faulty import FaultyFileSystem, cut_short, garbled
from tests.pipelines.reading import ShardReader, ranges_of

IN = "faulty://in"
SHORT = Patience(seconds=0.3, doubtful_seconds=0.1, timeout=0.5)
LONG = Patience(seconds=60, doubtful_seconds=60)
TROUBLE = [PermissionError("Expired"), FileNotFoundError("404"), MemoryError(), TimeoutError(), OSError("SlowDown")]
EXPECTED = [f"{hashlib.sha256(bytes([row])).hexdigest()} {row} " * 5 for row in range(40)]


@pytest.fixture(params=[".jsonl", ".csv.gz", ".txt.zst"])
def form(request: pytest.FixtureRequest, tmp_path, monkeypatch) -> Iterator[str]:
    """Of a file of many row groups in a store, that is in trouble when it is told to be."""
    monkeypatch.setattr(patience_module, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(patience_module, "LONGEST_WAIT", 0.01)
    monkeypatch.setattr(scan, "ROW_GROUP_BYTES", 500)
    FaultyFileSystem.reset()
    content = write(pa.table({"text": EXPECTED}), tmp_path, "a", request.param).read_bytes()
    FaultyFileSystem().memory.pipe_file(f"/in/a{request.param}", content)
    yield request.param
    FaultyFileSystem.reset()


def planned(patience: Patience = LONG) -> ShardReader:
    (shard,), (schema,) = find_shards(InputConfig(paths=(IN,)), patience)
    return ShardReader(shard, schema, {}, IN, patience)


def texts(read: ShardReader) -> list[str]:
    tables = [table for _, table in read.tables(ranges_of(read.shard, 10))]
    assert all(table["error"].null_count == len(table) for table in tables)
    return [text for table in tables for text in table["text"].to_pylist()]


@pytest.mark.usefixtures("form")
def test_trouble_passes_in_planning_and_in_reading() -> None:
    FaultyFileSystem.faults["read"] = list(TROUBLE)
    read = planned()
    assert not FaultyFileSystem.faults["read"]
    FaultyFileSystem.faults["read"] = [*TROUBLE, cut_short]
    assert texts(read) == EXPECTED
    assert not FaultyFileSystem.faults["read"]


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
def test_trouble_without_end_fails_the_units_and_not_their_rows(error: Exception) -> None:
    read = planned(SHORT)
    FaultyFileSystem.always["read"] = error
    with pytest.raises(JobError, match=rf"^Reading /in/a\..* failed: {type(error).__name__}"):
        texts(read)
    with pytest.raises(StoreError, match=rf"^Reading /in/a\..* failed: {type(error).__name__}"):
        planned(SHORT)


@pytest.mark.usefixtures("form")
def test_bytes_that_were_garbled_on_their_way_are_read_again() -> None:
    read = planned()
    FaultyFileSystem.faults["read"] = [garbled]
    assert texts(read) == EXPECTED
    FaultyFileSystem.faults["read"] = [garbled]
    assert texts(planned()) == EXPECTED


@pytest.mark.usefixtures("form")
def test_a_file_that_was_replaced_fails_its_units(form: str) -> None:
    read = planned()
    memory = FaultyFileSystem().memory
    memory.pipe_file(f"/in/a{form}", memory.cat_file(f"/in/a{form}") + b"\n")
    with pytest.raises(JobError, match="has changed since the job was planned"):
        texts(read)
