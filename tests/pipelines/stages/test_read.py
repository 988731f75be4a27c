import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import ConfigError, JobError, StoreError
from batchloom.pipelines.planning.shards import find_shards
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.planning.units import Size, Unit, parts_of, units_of
from batchloom.pipelines.stages.read import Read, Stretch, stretches
from batchloom.pipelines.stages.reader import Reader
from batchloom.pipelines.stages.work import Work

ALL = Size(10**9, 10**9)


def corpus(tmp_path, num_rows: int = 100, row_group_size: int = 30):
    table = pa.table({"t": [f"text {i}" for i in range(num_rows)], "n": list(range(num_rows))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=row_group_size)
    return the_shards_of(tmp_path)


def the_shards_of(folder):
    """Shards, and the columns of the first of them."""
    shards, schemas = find_shards(InputConfig(paths=(str(folder),)))
    return shards, schemas[0].remove_metadata()


def units_in(shards, rows_per_unit: int) -> list[Unit]:
    """Units of parts that hold whole shards."""
    by_name = {shard.name: shard for shard in shards}
    size = Size(rows_per_unit, 10**9)
    return [unit for part in parts_of(shards, ALL) for unit in units_of(part, [(0, part.num_rows)], by_name, size)]


def stretches_in(shards, units, least_units: int = 1) -> list[Stretch]:
    return list(stretches(units, {shard.name: shard for shard in shards}, least_units))


def spans_of(shards, *ranges: tuple[int, int]) -> list[tuple[Span]]:
    return [(Span(shards[0].name, shards[0].source.identity, *rows),) for rows in ranges]


def sources_of(shards):
    return {shard.name: shard.source for shard in shards}


@pytest.mark.parametrize("rows_per_unit", [1, 7, 30, 64, 1000])
@pytest.mark.parametrize("pending", ["all", "every third"])
@pytest.mark.parametrize("least_units", [1, 5])
def test_each_unit_gets_its_own_rows_in_one_pass(tmp_path, monkeypatch, rows_per_unit, pending, least_units) -> None:
    monkeypatch.setattr("batchloom.pipelines.formats.decode.BATCH_ROWS", 11)  # batches that end inside units
    shards, schema = corpus(tmp_path)
    units = units_in(shards, rows_per_unit)[:: 1 if pending == "all" else 3]
    read = Read(Reader(schema, {}, str(tmp_path)))
    got = []
    for stretch in stretches_in(shards, units, least_units):
        got += map(Work.from_batch, read(pa.table({"stretch": [stretch.to_json()]})))
    assert [work.unit for work in got] == units
    for work in got:
        assert work.rows["n"].to_pylist() == [work.unit.row(number)[1] for number in range(work.unit.num_rows)]
        assert work.rows["error"].null_count == work.unit.num_rows


def test_units_of_one_row_group_are_read_together_and_row_groups_apart(tmp_path) -> None:
    shards, _ = corpus(tmp_path)
    units = units_in(shards, 15)

    def told(least_units: int) -> list[list[tuple[int, int]]]:
        return [[unit.ranges[0] for unit in stretch.units] for stretch in stretches_in(shards, units, least_units)]

    assert told(1) == [[(0, 15), (15, 30)], [(30, 45), (45, 60)], [(60, 75), (75, 90)], [(90, 100)]]
    assert told(3) == [[(0, 15), (15, 30), (30, 45), (45, 60)], [(60, 75), (75, 90), (90, 100)]]


def test_a_unit_may_span_small_shards(tmp_path) -> None:
    for name, start in (("a", 0), ("b", 3), ("c", 5)):
        rows = list(range(start, {"a": 3, "b": 5, "c": 9}[name]))
        pq.write_table(pa.table({"t": list(map(str, rows)), "n": rows}), tmp_path / f"{name}.parquet")
    shards, schema = the_shards_of(tmp_path)
    units = units_in(shards, 6)
    assert [unit.num_rows for unit in units] == [5, 4]
    (stretch,) = stretches_in(shards, units, least_units=2)
    read = list(Reader(schema, {}, str(tmp_path)).tables(stretch.sources, [unit.spans for unit in stretch.units]))
    assert [table["n"].to_pylist() for table in read] == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]


def test_damaged_pages_become_error_rows_and_no_row_is_lost(tmp_path) -> None:
    table = pa.table({"t": [f"text {i} " * 50 for i in range(200)], "n": list(range(200))})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=100, write_page_checksum=True, compression="zstd")
    content = bytearray(path.read_bytes())
    for i in range(200, 700):  # inside the first row group's first column
        content[i] ^= 0xFF
    path.write_bytes(content)
    shards, schema = the_shards_of(tmp_path)
    reader = Reader(schema, {}, str(tmp_path))
    got = list(reader.tables(sources_of(shards), spans_of(shards, (0, 60), (60, 100), (100, 200))))
    assert [table.num_rows for table in got] == [60, 40, 100]
    damaged, more, whole = got
    assert {error["kind"] for table in (damaged, more) for error in table["error"].to_pylist()} == {"damaged_input"}
    assert whole["error"].null_count == 100
    assert whole["n"].to_pylist() == list(range(100, 200))


def test_a_file_that_is_gone_is_no_error_row_but_an_error(tmp_path) -> None:
    """In place of the rows of that file alone."""
    shards, schema = corpus(tmp_path)
    pq.write_table(pa.table({"t": ["x"], "n": [1]}), tmp_path / "b.parquet")
    shards, _ = the_shards_of(tmp_path)
    (tmp_path / "a.parquet").unlink()
    groups = [*spans_of(shards, (0, 50), (50, 100)), *spans_of(shards[1:], (0, 1))]
    gone, still_gone, there = Reader(schema, {}, str(tmp_path)).tables(sources_of(shards), groups)
    assert isinstance(gone, StoreError)
    assert re.match(r"Reading .*a\.parquet failed: FileNotFoundError", str(gone))
    assert still_gone is gone
    assert there["n"].to_pylist() == [1]


def test_a_unit_travels_through_a_batch_unchanged(tmp_path) -> None:
    shards, schema = corpus(tmp_path)
    unit, *_ = units_in(shards, 30)
    (rows,) = Reader(schema, {}, str(tmp_path)).tables(sources_of(shards), [unit.spans])
    work = Work(unit=unit, sources=sources_of(shards), rows=rows, measures={"seconds": 1.5})
    assert Work.from_batch(work.to_batch()) == work
    failed = work.failed("the store is gone")
    assert failed.rows.num_rows == 0
    assert Work.from_batch(failed.to_batch()) == failed


def test_a_failed_unit_passes_a_stage_and_an_error_of_a_stage_fails_the_unit(tmp_path) -> None:
    shards, schema = corpus(tmp_path)
    unit, *_ = units_in(shards, 30)
    (rows,) = Reader(schema, {}, str(tmp_path)).tables(sources_of(shards), [unit.spans])

    def broken(work: Work) -> Work:
        raise ValueError(f"no {work.unit.stem}")

    work = Work(unit=unit, rows=rows)
    assert work.attempt("Looking", lambda seen: seen) is work
    failed = work.attempt("Looking", broken)
    assert failed == Work(unit=unit, failure="Looking failed: ValueError: no a-000000000-000000030")
    assert failed.attempt("Looking again", lambda _: pytest.fail("called for a failed unit")) is failed
    with pytest.raises(ConfigError):  # concerns the whole job
        work.attempt("Looking", lambda _: (_ for _ in ()).throw(ConfigError("no such column")))


def test_a_column_that_a_shard_does_not_have_is_null(tmp_path) -> None:
    shards, schema = corpus(tmp_path, num_rows=5)
    wider = schema.append(pa.field("late", pa.int64()))
    (table,) = Reader(wider, {}, str(tmp_path)).tables(sources_of(shards), spans_of(shards, (0, 5)))
    assert table["late"].null_count == 5
    assert table["late"].type == pa.int64()


def test_a_value_that_the_shared_type_cannot_hold_is_no_damage(tmp_path) -> None:
    """All rows of the unit were left unanswered, with their ids lost, for one large number."""
    pq.write_table(pa.table({"t": ["x", "y"], "n": [2**53 + 1, 1]}), tmp_path / "a.parquet")
    shards, _ = the_shards_of(tmp_path)
    reader = Reader(pa.schema([("t", pa.string()), ("n", pa.float64())]), {}, str(tmp_path))
    (error,) = reader.tables(sources_of(shards), spans_of(shards, (0, 2)))
    assert isinstance(error, JobError)
    assert "Column 'n' of a.parquet holds int64, and all shards together double" in str(error)
