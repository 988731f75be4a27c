"""A store's trouble is waited for and is no damage; a shard that has changed is told; nothing hangs for ever."""

import os
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ReadTimeoutError
from fsspec.exceptions import FSTimeoutError

from batchloom.models import patience as patience_module
from batchloom.models.patience import Patience
from batchloom.models.trouble import Trouble
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError, JobError, StoreError
from batchloom.pipelines.formats import parquet as reading
from batchloom.pipelines.planning.shards import find_shards
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.planning.spans import Range
from batchloom.pipelines.stores.storage import Store
from tests.pipelines.faulty import FaultyFileSystem, cut_short, garbled, hang
from tests.pipelines.reading import ShardReader, ranges_of

IN, OUT = "faulty://in", "faulty://out"
SHORT = Patience(seconds=0.3, doubtful_seconds=0.1, timeout=0.5)
TROUBLE = [
    PermissionError("Access Denied"),
    FileNotFoundError("404"),
    FSTimeoutError(),
    TimeoutError("read timed out"),
    ConnectionResetError("reset by peer"),
    ReadTimeoutError(endpoint_url="http://store"),
    pa.ArrowMemoryError("malloc failed"),
    MemoryError(),
    OSError("SlowDown"),
]


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyFileSystem]]:
    monkeypatch.setattr(patience_module, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(patience_module, "LONGEST_WAIT", 0.01)
    FaultyFileSystem.reset()
    yield FaultyFileSystem
    FaultyFileSystem.reset()


def parquet(num_rows: int = 40, first: int = 0) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"n": range(first, first + num_rows), "t": [f"text {i} " * 20 for i in range(num_rows)]})
    pq.write_table(table, sink, row_group_size=20, compression="zstd")
    return sink.getvalue().to_pybytes()


def put(content: bytes, name: str = "a.parquet") -> None:
    FaultyFileSystem().memory.pipe_file(f"/in/{name}", content)


def planned(patience: Patience = SHORT) -> tuple[ShardReader, list[Range]]:
    """What reads the shard, and its four units of ten rows, the first two of one row group."""
    put(parquet())
    shards, schemas = find_shards(InputConfig(paths=(IN,)))
    FaultyFileSystem.num_calls.clear()
    return ShardReader(shards[0], schemas[0], {}, IN, patience), ranges_of(shards[0], 10)


def rows(read: ShardReader, units: list[Range]) -> list[int]:
    got = []
    for unit, table in read.tables(units):
        assert table["error"].null_count == unit[1] - unit[0]
        got += table["n"].to_pylist()
    return got


# ------------------------------------------------------------------------------------------------------- reading units


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", ["read", "info"])
def test_trouble_in_reading_is_no_damage(store, error: Exception, kind: str) -> None:
    """All of these became damaged_input rows, with their ids lost, and the job ended well."""
    read, units = planned()
    store.faults[kind] = [error, error]
    assert rows(read, units[:2]) == list(range(20))
    assert not store.faults[kind]


def test_trouble_later_in_a_file_is_no_damage_and_each_attempt_has_a_fresh_filesystem(store) -> None:
    read, units = planned()
    made = store.num_made
    store.faults["read"] = [lambda content: content, PermissionError("ExpiredToken"), PermissionError("ExpiredToken")]
    assert rows(read, units) == list(range(40))
    assert store.num_made - made == 2


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
def test_trouble_without_end_fails_the_units_and_not_their_rows(store, error: Exception) -> None:
    read, units = planned()
    store.always["read"] = error
    with pytest.raises(JobError) as caught:
        rows(read, units)
    assert str(caught.value).startswith(f"Reading /in/a.parquet failed: {type(error).__name__}: ")
    assert "(tried " in str(caught.value)


def test_bytes_that_were_garbled_on_their_way_are_read_again(store) -> None:
    read, units = planned()
    store.faults["read"] = [garbled]
    assert rows(read, units) == list(range(40))
    store.faults["read"] = [lambda content: content, garbled]
    assert rows(read, units) == list(range(40))


def test_bytes_that_do_not_decode_twice_are_damage() -> None:
    read, units = planned()
    content = bytearray(parquet())
    content[4:200] = garbled(bytes(content[4:200]))
    put(bytes(content))
    shards, schemas = find_shards(InputConfig(paths=(IN,)))
    read, units = ShardReader(shards[0], schemas[0], {}, IN, SHORT), ranges_of(shards[0], 20)
    tables = [table for unit in units for _, table in read.tables([unit])]
    assert {error["kind"] for error in tables[0]["error"].to_pylist()} == {"damaged_input"}
    assert tables[1]["n"].to_pylist() == list(range(20, 40))


def test_a_read_that_brings_too_few_bytes_is_repeated(store) -> None:
    read, units = planned()
    store.faults["read"] = [cut_short, cut_short]
    assert rows(read, units) == list(range(40))


def test_memory_that_runs_out_while_rows_are_decoded_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read, units = planned()
    decoded, faults = reading.decoded, [pa.ArrowMemoryError("malloc"), MemoryError()]
    at = 1  # the second unit of each attempt

    def short_of_memory(*args: Any) -> Iterator[pa.Table]:
        for number, table in enumerate(decoded(*args)):
            if number == at and faults:
                raise faults.pop()
            yield table

    monkeypatch.setattr(reading, "decoded", short_of_memory)
    assert rows(read, units) == list(range(40))
    assert not faults
    faults += [MemoryError() for _ in range(10_000)]
    at = 0
    with pytest.raises(JobError, match=r"Decoding /in/a\.parquet failed: MemoryError: .*Free memory"):
        rows(read, units)


def test_a_read_that_hangs_is_abandoned_and_repeated(store) -> None:
    read, units = planned(Patience(seconds=30, timeout=0.3))
    store.faults["read"] = [lambda content: hang() or content]
    store.faults["info"] = [hang]
    begun = time.monotonic()
    assert rows(read, units) == list(range(40))
    assert time.monotonic() - begun < 20


def test_the_checks_cost_two_questions_for_each_row_group_and_no_byte_is_read_twice(store) -> None:
    read, units = planned()
    assert rows(read, units[:2]) == list(range(20))
    assert store.num_calls["info"] == 2
    num_reads = store.num_calls["read"]
    store.num_calls.clear()
    file = pq.ParquetFile(store().open("/in/a.parquet"), pre_buffer=True)
    next(file.iter_batches(20, row_groups=[0]))
    assert store.num_calls["read"] == num_reads


# ------------------------------------------------------------------------------------------------- shards that changed


@pytest.mark.parametrize("other", [parquet(first=1000), parquet(num_rows=15), parquet(num_rows=0), b"no parquet", b""])
def test_a_shard_that_was_swapped_before_it_is_read_fails_its_units(other: bytes) -> None:
    """Its rows were wrong ones, or error rows, or "generator raised StopIteration"."""
    read, units = planned()
    put(other)
    with pytest.raises(JobError, match=r"^a\.parquet has changed since the job was planned: it has \d+ bytes and"):
        list(read.tables(units))


@pytest.mark.parametrize("num_reads", [1, 2])
def test_a_shard_that_is_swapped_while_it_is_read_fails_its_units(store, num_reads: int) -> None:
    read, units = planned()

    def swap(content: bytes) -> bytes:
        put(parquet(first=1000))
        return content

    store.faults["read"] = [*[lambda content: content] * (num_reads - 1), swap]
    with pytest.raises(JobError, match="has changed since the job was planned"):
        list(read.tables(units))


def test_a_shard_that_is_put_back_is_read(store) -> None:
    read, units = planned()
    original = store().memory.store["/in/a.parquet"]
    put(parquet(first=1000))
    with pytest.raises(JobError, match="has changed"):
        list(read.tables(units[:2]))
    store().memory.store["/in/a.parquet"] = original
    assert rows(read, units) == list(range(40))


@pytest.mark.parametrize("how", ["replaced", "written in place"])
def test_a_local_shard_that_has_changed_fails_its_units_and_one_touched_within_a_millisecond_too(tmp_path, how) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet())
    shards, schemas = find_shards(InputConfig(paths=(str(tmp_path),)))
    read, units = ShardReader(shards[0], schemas[0], {}, str(tmp_path), SHORT), ranges_of(shards[0], 10)
    assert rows(read, units) == list(range(40))
    tables = read.tables(units)
    next(tables)
    before = path.stat().st_mtime_ns
    if how == "replaced":
        (tmp_path / "b").write_bytes(parquet(first=7))
        (tmp_path / "b").replace(path)
    else:
        path.write_bytes(parquet(first=7))
    os.utime(path, ns=(before + 1000, before + 1000))  # a microsecond
    with pytest.raises(JobError, match="has changed since the job was planned"):
        list(read.tables(units))


def test_etags_with_and_without_quotes_and_sizes_that_a_listing_lacked_are_no_change() -> None:
    """Azure quotes etags in answers about one file, and not in listings."""
    info = {"size": 9, "etag": '"0x8D"', "last_modified": "today"}
    for size, version in ((9, "0x8D"), (9, '"0x8D"'), (9, "today"), (None, "0x8D"), (9, "")):
        Source("a", "p", size, version).check_unchanged(info)
    for size, version in ((8, "0x8D"), (9, "0x8E"), (8, "")):
        with pytest.raises(JobError, match=r'has 9 bytes and is of version "0x8D" now'):
            Source("a", "p", size, version).check_unchanged(info)


# ------------------------------------------------------------------------------------------------------------ planning


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
def test_planning_waits_for_a_store(store, error: Exception) -> None:
    for number in range(3):
        put(parquet(), f"{number}.parquet")
    store.faults["list"] = [error] if not isinstance(error, FileNotFoundError) else []
    store.faults["read"] = [error, error]
    shards, _ = find_shards(InputConfig(paths=(IN,)), SHORT)
    assert [shard.num_rows for shard in shards] == [40, 40, 40]
    assert not store.faults["read"]


@pytest.mark.parametrize("pattern", [IN, f"{IN}/*/*.parquet", f"{IN}/**/*.parquet"])
def test_a_folder_that_cannot_be_listed_is_not_left_out(store, pattern: str) -> None:
    """fsspec's walks skip it without a word: its rows were in no plan, and the job answered "all" of the others."""
    for number in range(3):
        put(parquet(), f"{number}/a.parquet")
    listed: list[Any] = [lambda: None, lambda: None]
    store.faults["list"] = [*listed, OSError("SlowDown")]
    assert len(find_shards(InputConfig(paths=(pattern,)), SHORT)[0]) == 3
    store.faults["list"] = [*listed, PermissionError("no")] * 1000
    with pytest.raises(InputError, match="PermissionError: no"):
        find_shards(InputConfig(paths=(pattern,)), Patience(seconds=0.05, doubtful_seconds=0.05))


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
def test_footers_that_cannot_be_fetched_are_not_called_damaged(store, error: Exception) -> None:
    """They were: "cannot be read as Parquet. Repair or remove them"."""
    for number in range(3):
        put(parquet(), f"{number}.parquet")
    store.always["read"] = error
    with pytest.raises(StoreError) as raised:
        find_shards(InputConfig(paths=(IN,)), SHORT)
    assert str(raised.value).startswith(f"Reading /in/0.parquet failed: {type(error).__name__}")
    assert str(raised.value).endswith("So did 2 others of 3 input files.")
    assert "Parquet" not in str(raised.value)


def test_a_footer_that_was_garbled_once_is_read_again(store) -> None:
    put(parquet())
    store.faults["read"] = [garbled]
    assert find_shards(InputConfig(paths=(IN,)), SHORT)[0][0].num_rows == 40


def test_a_key_that_does_not_permit_listing_is_told_in_one_line_and_within_seconds(store) -> None:
    put(parquet())
    store.always["list"] = PermissionError("The AWS Access Key Id you provided does not exist in our records.")
    begun = time.monotonic()
    with pytest.raises(InputError, match="Listing input path 'faulty://in' failed: Permission") as raised:
        find_shards(InputConfig(paths=(IN,)), Patience(seconds=300, doubtful_seconds=0.2))
    assert time.monotonic() - begun < 10
    assert "\n" not in str(raised.value)
    assert "Check the address, the credentials" in str(raised.value)


# ---------------------------------------------------------------------------------------------------- the output folder


def calls_of(store: Store) -> dict[str, Callable[[], Any]]:
    return {
        "list": store.names,
        "read": lambda: store.read("a"),
        "write": lambda: store.put("b", b"more"),
        "remove": lambda: store.remove(["a"]),
    }


def an_output() -> Store:
    output = Store(OUT, patience=SHORT)
    output.put("a", b"first")
    assert output.names() == {"a": 5}
    return output


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", ["list", "read", "write", "remove"])
def test_every_call_to_the_output_waits_for_the_store(store, kind: str, error: Exception) -> None:
    output = an_output()
    store.faults[kind] = [error, error]
    calls_of(output)[kind]()
    expected = {"a": 5, "b": 4} if kind == "write" else {} if kind == "remove" else {"a": 5}
    store.faults.clear()
    assert output.names() == expected


@pytest.mark.parametrize("kind", ["list", "read", "write", "remove"])
def test_a_call_that_fails_for_good_says_what_was_asked_and_what_was_found(store, kind: str) -> None:
    output = an_output()
    store.always[kind] = PermissionError("Access Denied")
    with pytest.raises(StoreError, match=r"faulty://out.* failed: PermissionError: Access Denied \(tried") as raised:
        calls_of(output)[kind]()
    assert raised.value.trouble is Trouble.DOUBTFUL


def test_what_the_driver_was_permitted_is_known_to_workers(store) -> None:
    output = Store(OUT, patience=Patience(seconds=30, doubtful_seconds=0))
    output.put("a", b"first")
    in_worker = pickle.loads(pickle.dumps(output))
    store.faults["write"] = [PermissionError("403")] * 3
    in_worker.put("b", b"second")
    store.faults["read"] = [PermissionError("403")]
    with pytest.raises(StoreError):  # never read before: a key may permit writing alone
        in_worker.read("b")


def test_a_write_that_hangs_is_abandoned_and_repeated(store) -> None:
    output = Store(OUT, patience=Patience(seconds=30, timeout=0.3))
    store.faults["write"] = [hang]
    output.put("a", b"first")
    assert output.read("a") == b"first"


def test_a_write_that_was_acknowledged_and_not_done_is_repeated(store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = store.pipe_file
    attempts = [lambda *_: None, lambda self, path, value: whole(self, path, value[:2]), whole]
    monkeypatch.setattr(store, "pipe_file", lambda *arguments: attempts.pop(0)(*arguments))
    output = Store(OUT, patience=Patience(seconds=30))
    assert output.put("a", b"first").size == 5
    assert output.read("a") == b"first"
    assert not attempts


def test_a_file_that_is_not_listed_is_missing_at_once_and_one_that_is_listed_is_waited_for(store) -> None:
    output = an_output()
    begun = time.monotonic()
    with pytest.raises(FileNotFoundError):
        output.read("nothing")
    assert time.monotonic() - begun < SHORT.seconds
    store.always["read"] = FileNotFoundError("404")
    with pytest.raises(StoreError, match="Reading faulty://out/a failed: FileNotFoundError: 404"):
        output.read("a")


def test_a_file_that_an_earlier_attempt_has_removed_is_removed(store) -> None:
    output = an_output()

    def removed_and_the_answer_lost() -> None:
        store().memory.rm_file("/out/a")
        raise ConnectionResetError("reset")

    store.faults["remove"] = [removed_and_the_answer_lost]
    output.remove(["a"])
    assert output.names() == {}


def test_files_that_nobody_needs_stay_where_they_may_not_be_removed(store, caplog) -> None:
    """Credentials that permit no removal are common; the job must end all the same."""
    output = Store(OUT, patience=SHORT)
    output.put("_batchloom/answers/a", b"x")
    store.always["remove"] = PermissionError("Access Denied")
    output.discard(["_batchloom/answers/a"])
    assert "_batchloom/answers/a" in output.names()
    assert "stay: Removing faulty://out/_batchloom/answers/a failed" in caplog.text
    store.always.clear()
    output.discard(["_batchloom/answers/a"], folders=["_batchloom/answers", "nothing"])
    assert output.names() == {}
