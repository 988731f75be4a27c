"""Parts without a job: what Write puts for the units of one shard, with answers made up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.metrics import UnitRecord
from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.planning.units import Unit, cut
from batchloom.pipelines.stages.write import Write
from batchloom.pipelines.storage import Store

FINGERPRINT = "0123456789abcdef" * 4


def table_of(unit: Unit, errors: int = 0) -> pa.Table:
    """The rows of a unit: ids that are rows of the shard; the first `errors` are error rows."""
    ids = list(range(unit.start, unit.stop))
    reason = {"stage": "prepare", "kind": "null_text", "message": "null"}
    columns: list[Any] = [
        pa.array([1] * len(ids), pa.int32()),
        pa.array([2] * len(ids), pa.int32()),
        pa.array([0] * len(ids), pa.int32()),
        pa.array(["eos"] * len(ids)),
        pa.array([reason if row < errors else None for row in range(len(ids))], LEDGER_FIELDS[-1].type),
    ]
    schema = pa.schema([("id", pa.int64()), ("answer", pa.string()), *LEDGER_FIELDS])
    return pa.table([pa.array(ids), pa.array([f"answer {i}" for i in ids]), *columns], schema=schema)


@pytest.fixture(scope="session")
def units() -> list[Unit]:
    """Three units of ten rows."""
    shard = Shard(path="/in/a.parquet", name="a.parquet", size=1000, version="1.5", row_groups=(10, 10, 10))
    return list(cut(shard, 10))


@pytest.fixture
def put_part(tmp_path: Path) -> Callable[..., UnitRecord]:
    """Write a unit's part to tmp_path / "out" and return its record."""

    def put(unit: Unit, errors: int = 0) -> UnitRecord:
        write = Write(
            task=None,  # type: ignore[arg-type]  # only finish() asks the task
            model="",
            store=Store(str(tmp_path / "out")),
            fingerprint=FINGERPRINT,
            version="0",
        )
        return write.put(unit, table_of(unit, errors), {})

    return put
