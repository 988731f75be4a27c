"""A view is what an output folder holds at this moment, finished or not. It computes nothing and changes nothing."""

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.pipelines.errors import ConfigError, OutputError
from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.ledger import ledger
from batchloom.pipelines.ledger.parts import FOOTER_KEY
from batchloom.pipelines.metrics import Manifest, UnitRecord, errors_by_kind, totals
from batchloom.pipelines.storage import Store

READ_THREADS = 16
NOT_UTF8 = "(bytes that are no UTF-8)"

Row = dict[str, Any]


@dataclass(frozen=True)
class View:
    """An output folder: its parts' own records, and the manifest where the job is finished."""

    store: Store
    job: Mapping[str, Any]
    """The job as resolved when it was started, from `_batchloom/job.json`."""
    manifest: Manifest | None
    records: tuple[UnitRecord, ...]

    @property
    def totals(self) -> Mapping[str, int]:
        return self.manifest.totals if self.manifest else totals(self.records)

    @property
    def errors_by_kind(self) -> Mapping[str, int]:
        return self.manifest.errors_by_kind if self.manifest else errors_by_kind(self.records)

    def sample(self, num_rows: int) -> list[Row]:
        """At most `num_rows` rows, from parts that are spread evenly over the output."""
        chosen = spread([record for record in self.records if record.num_rows], num_rows)
        rows_per_part = math.ceil(num_rows / max(len(chosen), 1))
        rows = [row for record in chosen for row in _first_rows(self.store, record.part, rows_per_part)]
        return rows[:num_rows]


def look(output: str, storage_options: Mapping[str, Any] | None = None) -> View:
    """Reads an output folder's records.

    Raises:
        OutputError: no batchloom job has written there.
    """
    store = Store(output, storage_options or {})
    found = ledger.look(store)
    if found.job is None:
        raise OutputError(f"{output} holds no batchloom output. Check the path; a job creates it with its first step.")
    manifest = ledger.read_manifest(store) if found.is_closed else None
    if manifest is not None:
        return View(store, found.job["job"], manifest, manifest.parts)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        read = pool.map(lambda part: _record(store, part, found.parts[part]), sorted(found.parts))
        records = [record for record in read if record is not None]
    return View(store, found.job["job"], None, tuple(records))


def spread(records: Sequence[UnitRecord], most: int) -> list[UnitRecord]:
    """At most `most` records, evenly over all."""
    num_chosen = min(len(records), most)
    return [records[index * len(records) // num_chosen] for index in range(num_chosen)]


def chosen_columns(rows: Sequence[Row], asked: Sequence[str] | None = None) -> list[str]:
    """The columns to show of `rows`: those asked for, else all but the ledger (token counts, finish reason, error).

    Raises:
        ConfigError: a column is not there.
    """
    there = list(rows[0]) if rows else []
    if asked is None:
        ledger_names = {field.name for field in LEDGER_FIELDS}
        return [name for name in there if name not in ledger_names]
    missing = [name for name in asked if name not in there]
    if missing and there:
        raise ConfigError(f"--columns: {', '.join(missing)} not in the output. It has: {', '.join(there)}.")
    return list(asked)


def _record(store: Store, part: str, size: int) -> UnitRecord | None:
    """The record in a part's footer; None for what is not a whole part, which a resumed job computes again."""
    try:
        with store.filesystem.open(store.path(part), "rb") as file:
            footer = json.loads((pq.read_metadata(file).metadata or {})[FOOTER_KEY])
    except (pa.ArrowException, OSError, KeyError):
        return None
    # The hash would need the part's every byte; a view reads footers only.
    return UnitRecord(part=part, bytes=size, sha256="", **footer["account"])


def _first_rows(store: Store, part: str, num_rows: int) -> list[Row]:
    with store.filesystem.open(store.path(part), "rb") as file:
        batch = next(pq.ParquetFile(file).iter_batches(batch_size=num_rows), None)
    if batch is None:
        return []
    return [
        {name: _value(column[row]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
        for row in range(batch.num_rows)
    ]


def _value(cell: pa.Scalar) -> Any:
    """A kept column is copied byte for byte, and an input may call text what is none."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return NOT_UTF8
