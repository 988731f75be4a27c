"""Parts without a job: what Assemble puts for the rows of one shard, with answers made up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.pipelines.config import OutputConfig
from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.planning.units import Part, Size, parts_of
from batchloom.pipelines.stages.assemble import Assemble
from batchloom.pipelines.stages.reader import Reader
from batchloom.pipelines.stores.storage import Store, version_of

FINGERPRINT = "0123456789abcdef" * 4
LAYOUT = "0123456789abcdef"
ANSWERS = pa.schema([("answer", pa.string()), *LEDGER_FIELDS])


def answers_of(rows: range, errors: int = 0) -> pa.Table:
    """Answers to rows of the shard; the first `errors` are errors."""
    reason = {"stage": "prepare", "kind": "null_text", "message": "null"}
    columns: list[Any] = [
        pa.array([f"answer {row}" for row in rows]),
        pa.array([1] * len(rows), pa.int32()),
        pa.array([2] * len(rows), pa.int32()),
        pa.array([0] * len(rows), pa.int32()),
        pa.array(["eos"] * len(rows)),
        pa.array([reason if index < errors else None for index in range(len(rows))], LEDGER_FIELDS[-1].type),
    ]
    return pa.table(columns, schema=ANSWERS)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A shard of 30 rows, with a column `id`."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.parquet"
    pq.write_table(pa.table({"id": range(30)}), path, row_group_size=10)
    found = path.stat()
    return Source("a.parquet", str(path), found.st_size, version_of({"mtime": found.st_mtime}))


@pytest.fixture
def planned(source: Source) -> list[Part]:
    """Three parts of ten rows."""
    return list(parts_of([Shard(source, (10, 10, 10), (80, 80, 80))], Size(10, 1000)))


@pytest.fixture
def assemble(tmp_path: Path) -> Assemble:
    """Writes parts with the column `id` kept to tmp_path / "out"."""
    reader = Reader(pa.schema([("id", pa.int64())]), {}, str(tmp_path / "in"))
    return Assemble(Store(str(tmp_path / "out")), reader, ANSWERS, FINGERPRINT, LAYOUT, "0", OutputConfig(path=""))


@pytest.fixture
def put_part(assemble: Assemble, source: Source) -> Callable[..., PartRecord]:
    """Write a part and return its record."""

    def put(part: Part, errors: int = 0) -> PartRecord:
        (span,) = part.spans
        return assemble.put(part, {source.name: source}, [answers_of(range(span.start, span.stop), errors)], {})

    return put
