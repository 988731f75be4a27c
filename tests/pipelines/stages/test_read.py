import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import ConfigError, JobError, StoreError
from batchloom.pipelines.planning.shards import find_shards
from batchloom.pipelines.planning.units import cut
from batchloom.pipelines.stages.read import Read, stretches
from batchloom.pipelines.stages.work import Work


def corpus(tmp_path, num_rows: int = 100, row_group_size: int = 30):
    table = pa.table({"t": [f"text {i}" for i in range(num_rows)], "n": list(range(num_rows))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=row_group_size)
    return the_shards_of(tmp_path)


def the_shards_of(folder):
    """Shards, and the columns of the first of them."""
    shards, schemas = find_shards(InputConfig(paths=(str(folder),)))
    return shards, schemas[0].remove_metadata()


@pytest.mark.parametrize("rows_per_unit", [1, 7, 30, 64, 1000])
@pytest.mark.parametrize("pending", ["all", "every third"])
def test_each_unit_gets_its_own_rows_in_one_pass(tmp_path, monkeypatch, rows_per_unit: int, pending: str) -> None:
    monkeypatch.setattr("batchloom.pipelines.stages.decode.BATCH_ROWS", 11)  # batches that end inside units
    shards, schema = corpus(tmp_path)
    units = list(cut(shards[0], rows_per_unit))[:: 1 if pending == "all" else 3]
    read = Read(schema, {}, str(tmp_path))
    got = [pair for stretch in stretches(shards, units) for pair in read.tables(stretch)]
    assert [unit for unit, _ in got] == units
    for unit, table in got:
        assert table["n"].to_pylist() == list(range(unit.start, unit.stop))
        assert table["error"].null_count == unit.num_rows


def test_units_of_one_row_group_are_read_together_and_row_groups_apart(tmp_path) -> None:
    shards, _ = corpus(tmp_path)
    units = list(cut(shards[0], 15))
    assert [[(u.start, u.stop) for u in stretch] for stretch in stretches(shards, units)] == [
        [(0, 15), (15, 30)],
        [(30, 45), (45, 60)],
        [(60, 75), (75, 90)],
        [(90, 100)],
    ]


def test_damaged_pages_become_error_rows_and_no_row_is_lost(tmp_path) -> None:
    table = pa.table({"t": [f"text {i} " * 50 for i in range(200)], "n": list(range(200))})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=100, write_page_checksum=True, compression="zstd")
    content = bytearray(path.read_bytes())
    for i in range(200, 700):  # inside the first row group's first column
        content[i] ^= 0xFF
    path.write_bytes(content)
    shards, schema = the_shards_of(tmp_path)
    units = list(cut(shards[0], 100))
    got = [pair for stretch in stretches(shards, units) for pair in Read(schema, {}, str(tmp_path)).tables(stretch)]
    assert [table.num_rows for _, table in got] == [100, 100]
    damaged, whole = (table for _, table in got)
    assert {error["kind"] for error in damaged["error"].to_pylist()} == {"damaged_input"}
    assert whole["error"].null_count == 100
    assert whole["n"].to_pylist() == list(range(100, 200))


def test_a_file_that_is_gone_is_no_error_row_but_an_error(tmp_path) -> None:
    shards, schema = corpus(tmp_path)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(StoreError, match=r"Reading .*a\.parquet failed: FileNotFoundError"):
        list(Read(schema, {}, str(tmp_path)).tables(list(cut(shards[0], 50))))


def test_a_unit_travels_through_a_batch_unchanged(tmp_path) -> None:
    shards, schema = corpus(tmp_path)
    (unit, rows), *_ = Read(schema, {}, str(tmp_path)).tables(list(cut(shards[0], 30)))
    work = Work(unit=unit, rows=rows, measures={"seconds": 1.5})
    assert Work.from_batch(work.to_batch()) == work
    failed = work.failed("the store is gone")
    assert failed.rows.num_rows == 0
    assert Work.from_batch(failed.to_batch()) == failed


def test_a_failed_unit_passes_a_stage_and_an_error_of_a_stage_fails_the_unit(tmp_path) -> None:
    shards, schema = corpus(tmp_path)
    (unit, rows), *_ = Read(schema, {}, str(tmp_path)).tables(list(cut(shards[0], 30)))

    def broken(work: Work) -> Work:
        raise ValueError(f"no {work.unit.start}")

    work = Work(unit=unit, rows=rows)
    assert work.attempt("Looking", lambda seen: seen) is work
    failed = work.attempt("Looking", broken)
    assert failed == Work(unit=unit, failure="Looking failed: ValueError: no 0")
    assert failed.attempt("Looking again", lambda _: pytest.fail("called for a failed unit")) is failed
    with pytest.raises(ConfigError):  # concerns the whole job
        work.attempt("Looking", lambda _: (_ for _ in ()).throw(ConfigError("no such column")))


def test_a_column_that_a_shard_does_not_have_is_null(tmp_path) -> None:
    shards, schema = corpus(tmp_path, num_rows=5)
    wider = schema.append(pa.field("late", pa.int64()))
    ((_, table),) = Read(wider, {}, str(tmp_path)).tables(list(cut(shards[0], 50)))
    assert table["late"].null_count == 5
    assert table["late"].type == pa.int64()


def test_a_value_that_the_shared_type_cannot_hold_is_no_damage(tmp_path) -> None:
    """All rows of the unit were left unanswered, with their ids lost, for one large number."""
    pq.write_table(pa.table({"t": ["x", "y"], "n": [2**53 + 1, 1]}), tmp_path / "a.parquet")
    shards, _ = the_shards_of(tmp_path)
    read = Read(pa.schema([("t", pa.string()), ("n", pa.float64())]), {}, str(tmp_path))
    with pytest.raises(JobError, match=r"Column 'n' of a\.parquet holds int64, and all shards together double"):
        list(read.tables(list(cut(shards[0], 50))))
