"""Read an output folder as it is at this moment, finished or not: its records and some of its rows."""

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
from batchloom.pipelines.ledger.parts import read_footer
from batchloom.pipelines.metrics import Manifest, UnitRecord, errors_by_kind, totals
from batchloom.pipelines.storage import Store

READ_THREADS = 16
NOT_UTF8 = "(bytes that are no UTF-8)"

Row = dict[str, Any]


@dataclass(frozen=True)
class View:
    """The contents of an output folder: its parts' records, and the manifest where the job is finished."""

    store: Store
    job: Mapping[str, Any]
    """The job as resolved when it was started, from the manifest or `_batchloom/job.json`."""
    manifest: Manifest | None
    records: tuple[UnitRecord, ...]

    @property
    def totals(self) -> Mapping[str, int]:
        return self.manifest.totals if self.manifest else totals(self.records)

    @property
    def errors_by_kind(self) -> Mapping[str, int]:
        return self.manifest.errors_by_kind if self.manifest else errors_by_kind(self.records)

    def sample(self, num_rows: int) -> list[Row]:
        """Return at most `num_rows` rows, from parts spread evenly over the output."""
        chosen = spread([record for record in self.records if record.num_rows], num_rows)
        rows_per_part = math.ceil(num_rows / max(len(chosen), 1))
        rows = [row for record in chosen for row in _first_rows(self.store, record.part, rows_per_part)]
        return rows[:num_rows]


def look(output: str, storage_options: Mapping[str, Any] | None = None) -> View:
    """Read an output folder's records.

    Raises:
        OutputError: no Batchloom job has written there.
    """
    store = Store(output, storage_options or {})
    found = ledger.look(store)
    manifest = ledger.read_manifest(store) if found.is_closed else None
    if manifest is not None:
        return View(store, _told(manifest.job), manifest, manifest.parts)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        read = pool.map(lambda part: _record(store, part, found.parts[part].size), sorted(found.parts))
        records = [record for record in read if record is not None]
    if found.job is None and not records:
        raise OutputError(f"{output} holds no batchloom output. Check the path; a job creates it with its first step.")
    return View(store, _told(found.job.job if found.job else {}), None, tuple(records))


def _told(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the job with a text for its task and its model: parts do not tell them where job.json is lost."""
    unknown = {name: f"unknown {name}" for name in ("task", "model") if not isinstance(job.get(name), str)}
    return {**job, **unknown}


def spread(records: Sequence[UnitRecord], most: int) -> list[UnitRecord]:
    """Return at most `most` of the records, evenly spaced."""
    num_chosen = min(len(records), most)
    return [records[index * len(records) // num_chosen] for index in range(num_chosen)]


def chosen_columns(rows: Sequence[Row], asked: Sequence[str] | None = None) -> list[str]:
    """Return the columns to show: those asked for, or all but the ledger's (token counts, finish reason, error).

    Raises:
        ConfigError: a column that was asked for is not in the output.
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
    """Read the record in a part's footer; None for a damaged part, which a resumed job computes again."""
    try:
        with store.filesystem.open(store.path(part), "rb") as file:
            return read_footer(part, size, pq.read_metadata(file)).record
    except (pa.ArrowException, OSError, ValueError):
        return None


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
    """Convert a cell. A kept string column is copied byte for byte, so it can hold what is not UTF-8."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return NOT_UTF8
