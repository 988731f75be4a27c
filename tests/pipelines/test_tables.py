"""A job over a table: each live row once, joined back to the input, and the same rows though the table moves on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog

from batchloom import pipelines
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import OutputError
from batchloom.pipelines.metrics import Event, PartDone
from batchloom.pipelines.planning.footers import Footers

pytestmark = pytest.mark.usefixtures("ray_cluster")

KEPT = ("id", "lang", "_source")


def interrupt(event: Event) -> None:
    if isinstance(event, PartDone):
        raise KeyboardInterrupt


def at_version(job: JobConfig, version: int | None) -> JobConfig:
    return replace(job, input=replace(job.input, version=version))


def check(job: JobConfig, folder: Path, expected: list[int]) -> pa.Table:
    """Verify the output, and join each of its rows back to the row that it is the answer to."""
    verification = pipelines.verify(job.output.path)
    assert verification.ok, verification.problems
    assert verification.num_rows == verification.num_input_rows == len(expected)
    rows = pq.read_table(job.output.path).sort_by("id")
    assert rows["id"].to_pylist() == expected
    for row in rows.to_pylist():
        file = pq.read_table(folder / row["_source"]["file"], partitioning=None)
        assert file["id"][row["_source"]["row"]].as_py() == row["id"]
    assert rows["lang"].to_pylist() == ["en" if number % 2 else None for number in expected]
    return rows


def test_a_job_over_a_delta_table_goes_on_with_the_version_that_it_began_with(
    make_job: Callable[..., JobConfig], make_sentences: Callable[..., list[str]], tmp_path, monkeypatch, caplog
) -> None:
    table = tmp_path / "table"

    def rows(start: int, stop: int) -> pa.Table:
        ids = range(start, stop)
        langs = pa.array(["en" if number % 2 else None for number in ids], pa.string())
        return pa.table({"id": ids, "text": make_sentences(len(ids), seed=start), "lang": langs})

    write_deltalake(table, rows(0, 12), partition_by=["lang"])
    DeltaTable(table).delete("id = 3")
    live = [number for number in range(12) if number != 3]
    job = make_job(paths=(str(table),), keep_columns=KEPT, rows_per_unit=3)
    with pytest.raises(KeyboardInterrupt):
        pipelines.run(job, interrupt)
    write_deltalake(table, rows(20, 24), mode="append")
    with monkeypatch.context() as patched:
        patched.setattr(Footers, "read", lambda *_: pytest.fail("its footer was read before"))
        manifest = pipelines.run(job)
        check(job, table, live)
    assert manifest.job["input"]["version"] == 1
    assert pipelines.plan(job).notes[-1].endswith("it has version 2 by now: input.version: 2 reads that one.")
    assert "input.version: 2 reads that one" in caplog.text
    assert pipelines.verify(job.output.path).notes == [pipelines.plan(job).notes[-1]]

    pipelines.run(at_version(job, 2))  # what was added is computed, and the rest stays
    check(job, table, [*live, *range(20, 24)])
    assert pipelines.plan(job).config.input.version == 2
    DeltaTable(table).delete("id = 5")
    with pytest.raises(OutputError, match="answers to inputs that are gone"):
        pipelines.run(at_version(job, 3))
    anew = replace(job, output=replace(job.output, mode="overwrite"))
    assert pipelines.plan(anew).config.input.version == 3


def test_a_job_over_an_iceberg_table_goes_on_with_the_snapshot_that_it_began_with(
    make_job: Callable[..., JobConfig], make_sentences: Callable[..., list[str]], tmp_path
) -> None:
    (tmp_path / "wh").mkdir()
    catalog = SqlCatalog("test", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/wh")
    catalog.create_namespace("ns")

    def rows(start: int, stop: int) -> pa.Table:
        ids = pa.array(range(start, stop), pa.int64())
        langs = pa.array(["en" if number.as_py() % 2 else None for number in ids], pa.string())
        return pa.table({"id": ids, "text": make_sentences(len(ids), seed=start), "lang": langs})

    table: Any = catalog.create_table("ns.t", rows(0, 1).schema)
    table.append(rows(0, 12))
    table.delete("id = 3")
    folder = Path(table.location().removeprefix("file://"))
    job = make_job(paths=(str(folder),), keep_columns=KEPT, rows_per_unit=3)
    with pytest.raises(KeyboardInterrupt):
        pipelines.run(job, interrupt)
    began = table.current_snapshot().snapshot_id
    table.overwrite(rows(20, 24))
    manifest = pipelines.run(job)
    check(job, folder, [number for number in range(12) if number != 3])
    assert manifest.job["input"]["version"] == began
    assert f"it has snapshot {table.current_snapshot().snapshot_id} by now" in pipelines.plan(job).notes[-1]
