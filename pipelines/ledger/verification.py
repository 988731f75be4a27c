"""Recount a finished output: every input row in exactly one part, every part as it was written."""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError, OutputError
from batchloom.pipelines.ledger import ledger
from batchloom.pipelines.ledger.parts import read_record
from batchloom.pipelines.metrics import Manifest, UnitRecord, errors_by_kind, totals
from batchloom.pipelines.planning.units import cut, find_shards
from batchloom.pipelines.storage import Store


@dataclass(frozen=True)
class Verification:
    """The counts, and every mismatch found."""

    num_parts: int
    num_rows: int
    """Rows in parts that exist and are intact."""
    num_input_rows: int | None
    """Rows in the input as it is now; None where it could not be read."""
    num_errors: int
    """Error rows in those parts."""
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(output: str, storage_options: Mapping[str, Any] | None = None) -> Verification:
    """Recount a finished output against its manifest and against its input.

    `storage_options` open the output, and the input, for which they complete those in the manifest (which has no
    secrets). Raises: OutputError where there is no manifest to verify against, or it is damaged.
    """
    store = Store(output, storage_options or {})
    manifest = ledger.read_manifest(store)
    if manifest is None:
        raise OutputError(f"{output} {_why_no_manifest(ledger.look(store))}")
    found = ledger.look(store)
    with ThreadPoolExecutor(ledger.READ_THREADS) as pool:
        checked = list(pool.map(lambda record: _check_part(store, manifest, record), manifest.parts))
    problems = [problem for _, _, part_problems in checked for problem in part_problems]
    problems += [
        f"{name}: it is in the output and not in the manifest"
        for name in sorted({*found.parts, *found.others} - {record.part for record in manifest.parts})
    ]
    num_input_rows, input_problems = _check_input(manifest, storage_options or {})
    return Verification(
        num_parts=len(manifest.parts),
        num_rows=sum(num_rows for num_rows, _, _ in checked),
        num_input_rows=num_input_rows,
        num_errors=sum(num_errors for _, num_errors, _ in checked),
        problems=[*problems, *_check_totals(manifest), *input_problems],
    )


def _why_no_manifest(found: ledger.Found) -> str:
    if found.job is None:
        return "holds no batchloom output. Check the path."
    num_parts = len(found.parts)
    return f"is not finished: {num_parts} parts and no manifest. Run the job again; it goes on where it stopped."


def _check_part(store: Store, manifest: Manifest, record: UnitRecord) -> tuple[int, int, list[str]]:
    """Return (rows, error rows, problems) of one part, from its own bytes."""
    try:
        content = store.read(record.part)
    except FileNotFoundError:
        return 0, 0, [f"{record.part}: it is missing ({record.num_rows} rows of {record.shard})"]
    if len(content) != record.bytes:
        return 0, 0, [f"{record.part}: it has {len(content)} bytes, and {record.bytes} were written"]
    if hashlib.sha256(content).hexdigest() != record.sha256:
        return 0, 0, [f"{record.part}: its bytes are not the ones that were written"]
    errors = pq.read_table(pa.BufferReader(content), columns=["error"])["error"]
    num_errors = len(errors) - errors.null_count
    return len(errors), num_errors, list(_miscounts(manifest, record, content, len(errors), num_errors))


def _miscounts(manifest: Manifest, record: UnitRecord, content: bytes, num_rows: int, num_errors: int) -> Iterator[str]:
    if num_rows != record.stop - record.start or num_rows != record.num_rows:
        yield f"{record.part}: it has {num_rows} rows for rows {record.start} to {record.stop} of {record.shard}"
    if num_errors != record.num_errors:
        yield f"{record.part}: it has {num_errors} error rows, and the manifest says {record.num_errors}"
    if read_record(record.part, content)[0] != record:
        yield f"{record.part}: its footer tells of other figures than the manifest"
    if not record.part.endswith(f"-{manifest.fingerprint[:8]}.parquet"):
        yield f"{record.part}: it belongs to another fingerprint than {manifest.fingerprint[:8]}"


def _check_totals(manifest: Manifest) -> Iterator[str]:
    for name, value in totals(manifest.parts).items():
        if name != "shards" and manifest.totals.get(name) != value:  # parts do not count empty shards
            yield f"manifest: totals.{name} is {manifest.totals.get(name)}, and its parts sum to {value}"
    if manifest.errors_by_kind != (counts := errors_by_kind(manifest.parts)):
        yield f"manifest: errors_by_kind is {dict(manifest.errors_by_kind)}, and its parts sum to {counts}"


def _check_input(manifest: Manifest, storage_options: Mapping[str, Any]) -> tuple[int | None, list[str]]:
    """Return the rows of the input as it is now, and where its units and the manifest's parts do not correspond."""
    values = manifest.job["input"]
    known = {name: values[name] for name in InputConfig.__dataclass_fields__ if name in values}
    known["storage_options"] = {**values["storage_options"], **storage_options}
    config = InputConfig(**{**known, "paths": tuple(values["paths"])})
    try:
        shards, _ = find_shards(config)
    except InputError as error:
        return None, [f"input: cannot be recounted. {error}"]
    units = {
        unit.part_name(manifest.fingerprint): unit for shard in shards for unit in cut(shard, config.rows_per_unit)
    }
    written = {record.part for record in manifest.parts}
    problems = [
        f"input: rows {unit.start} to {unit.stop} of {unit.shard} have no part (is the file new, or has it changed?)"
        for name, unit in units.items()
        if name not in written
    ]
    problems += [
        f"input: rows {record.start} to {record.stop} of {record.shard} are not there as they were"
        for record in manifest.parts
        if record.part not in units
    ]
    return sum(shard.num_rows for shard in shards), problems
