"""Recount a finished output: every input row in exactly one part, every part as it was written.

Names, footers, manifest, contents and inputs are held against each other: none is believed alone.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.models.redaction import redacted
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError, NoInputError, OutputError, StoreError
from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.ledger import ledger
from batchloom.pipelines.ledger.parts import counts_of, is_part_name, read_part
from batchloom.pipelines.metrics import Manifest, UnitRecord, errors_by_kind, totals
from batchloom.pipelines.planning.fingerprint import fingerprint
from batchloom.pipelines.planning.kept_footers import KeptFooters
from batchloom.pipelines.planning.shards import find_shards
from batchloom.pipelines.planning.units import Unit, cut
from batchloom.pipelines.records import from_json
from batchloom.pipelines.storage import Store, absolute


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
    notes: list[str] = field(default_factory=list)
    """What cannot be compared and is no problem: answers to inputs that were deleted, under `input.missing: keep`."""

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    output: str, storage_options: Mapping[str, Any] | None = None, given: InputConfig | None = None
) -> Verification:
    """Recount a finished output against its manifest and against its input.

    `storage_options` open the output, and the input, for which they complete those in the manifest, which has no
    credentials. `given`: the input as the job file has it, with them. Raises: OutputError where there is no manifest to
    verify against, or it is damaged.
    """
    store = Store(output, storage_options or {})
    found = ledger.look(store)
    manifest = ledger.read_manifest(store)
    if manifest is None:
        raise OutputError(f"{output} {_why_no_manifest(found)}")
    config = _input_of(store, manifest, storage_options or {}, given)
    with ThreadPoolExecutor(ledger.READ_THREADS) as pool:
        checked = list(pool.map(lambda record: _check_part(store, found, manifest, record), manifest.parts))
    num_input_rows, input_problems, notes = _check_input(manifest, config, KeptFooters(store, None))
    return Verification(
        num_parts=len(manifest.parts),
        num_rows=sum(num_rows for num_rows, _, _ in checked),
        num_input_rows=num_input_rows,
        num_errors=sum(num_errors for _, num_errors, _ in checked),
        problems=[
            *(problem for _, _, part_problems in checked for problem in part_problems),
            *_check_names(manifest, found),
            *_check_totals(manifest),
            *input_problems,
        ],
        notes=notes,
    )


def _why_no_manifest(found: ledger.Found) -> str:
    parts = [name for name in found.parts if is_part_name(name)]
    if found.job is None and not parts:
        return "holds no batchloom output. Check the path."
    return f"is not finished: {len(parts)} parts and no manifest. Run the job again; it goes on where it stopped."


def _input_of(
    store: Store, manifest: Manifest, storage_options: Mapping[str, Any], given: InputConfig | None
) -> InputConfig:
    """Return the input that the manifest's job names, with the credentials of the given one where that is the same.

    Raises: OutputError where it is none.
    """
    try:
        config = from_json(InputConfig, manifest.job.get("input"))
        if not config.paths or config.rows_per_unit < 1:
            raise ValueError(f"it has {len(config.paths)} paths and {config.rows_per_unit} rows_per_unit")
    except ValueError as error:
        raise OutputError(f"{store.path(ledger.MANIFEST)} is not as batchloom wrote it: job.input: {error}.") from error
    options = {**config.storage_options, **storage_options}
    paths = () if given is None else tuple(absolute(path) for path in given.paths)
    if given is not None and tuple(map(redacted, paths)) == config.paths:
        return replace(config, paths=paths, storage_options={**options, **given.storage_options})
    return replace(config, storage_options=options)


def _check_part(
    store: Store, found: ledger.Found, manifest: Manifest, record: UnitRecord
) -> tuple[int, int, list[str]]:
    """Return (rows, error rows, problems) of one part, from its own bytes."""
    missing = f"{record.part}: it is missing ({record.num_rows} rows of {record.shard})"
    if record.part not in found.parts:  # or it is a pipe, or named out of the folder, and not to be opened
        return 0, 0, [missing]
    try:
        content = store.read(record.part)
    except FileNotFoundError:
        return 0, 0, [missing]
    except StoreError as error:  # a folder of that name, or a store that does not give it
        return 0, 0, [f"{record.part}: it cannot be read. {error}"]
    if len(content) != record.bytes:
        return 0, 0, [f"{record.part}: it has {len(content)} bytes, and {record.bytes} were written"]
    try:
        part = read_part(record.part, content)
        columns = pq.read_table(pa.BufferReader(content), columns=[field.name for field in LEDGER_FIELDS])
        counted = counts_of(columns)
    except (ValueError, KeyError, pa.ArrowException, OSError) as error:
        return 0, 0, [f"{record.part}: {error}"]
    if part.record.sha256 != record.sha256:
        return 0, 0, [f"{record.part}: its bytes are not the ones that were written"]
    problems = [
        f"{record.part}: {name} is {value} in its rows, and {getattr(part.record, name)} in its footer"
        for name, value in counted.items()
        if getattr(part.record, name) != value
    ]
    if part.record != record:
        problems.append(f"{record.part}: its footer tells of other figures than the manifest")
    if part.fingerprint != manifest.fingerprint:
        problems.append(f"{record.part}: it belongs to another fingerprint than {manifest.fingerprint[:8]}")
    return counted["num_rows"], counted["num_errors"], problems


def _check_names(manifest: Manifest, found: ledger.Found) -> Iterator[str]:
    """Yield files that are no part of the manifest, and parts that it names twice."""
    named = Counter(record.part for record in manifest.parts)
    for name in sorted({*found.parts, *found.others} - set(named)):
        yield f"{name}: it is in the output and not in the manifest"
    for name, count in named.items():
        if count > 1:
            yield f"manifest: it names {name} {count} times"


def _check_totals(manifest: Manifest) -> Iterator[str]:
    for name, value in totals(manifest.parts).items():
        if name != "shards" and manifest.totals.get(name) != value:  # parts do not count empty shards
            yield f"manifest: totals.{name} is {manifest.totals.get(name)}, and its parts sum to {value}"
    if manifest.errors_by_kind != (counts := errors_by_kind(manifest.parts)):
        yield f"manifest: errors_by_kind is {dict(manifest.errors_by_kind)}, and its parts sum to {counts}"
    if fingerprint(manifest.fingerprint_of) != manifest.fingerprint:
        yield "manifest: its fingerprint is not that of fingerprint_of"


def _check_input(
    manifest: Manifest, config: InputConfig, footers: KeptFooters
) -> tuple[int | None, list[str], list[str]]:
    """Return the rows of the input as it is now, where its units and the manifest's parts do not correspond, and what
    cannot be compared because an input was deleted and its answers are kept."""
    try:
        shards, _ = find_shards(config, kept=footers)
    except (InputError, StoreError) as error:
        gone = [f"input: cannot be recounted. {error}"]
        are_kept = config.missing == "keep" and isinstance(error, NoInputError)
        return None, [] if are_kept else gone, gone if are_kept else []
    units = {
        unit.part_name(manifest.fingerprint): unit for shard in shards for unit in cut(shard, config.rows_per_unit)
    }
    written = {record.part for record in manifest.parts}
    problems = [
        f"input: rows {unit.start} to {unit.stop} of {unit.shard} have no part (is the file new, or has it changed?)"
        for name, unit in units.items()
        if name not in written
    ]
    present = {shard.name for shard in shards}
    kept: dict[str, list[UnitRecord]] = {}
    for record in manifest.parts:
        if record.part in units:
            problems += _other_rows(record, units[record.part])
        elif config.missing == "keep" and record.shard not in present:
            kept.setdefault(record.shard, []).append(record)
        else:
            problems.append(f"input: rows {record.start} to {record.stop} of {record.shard} are not there as they were")
    problems += [problem for records in kept.values() for problem in _overlaps(records)]
    notes = [
        f"{shard} was deleted: the answers to {sum(record.num_rows for record in records)} of its rows are kept, and "
        "whether it had more cannot be told any more"
        for shard, records in kept.items()
    ]
    return sum(shard.num_rows for shard in shards), problems, notes


def _other_rows(record: UnitRecord, unit: Unit) -> Iterator[str]:
    if (record.shard, record.start, record.stop) != (unit.shard, unit.start, unit.stop):
        yield (
            f"manifest: {record.part} holds rows {record.start} to {record.stop} of {record.shard}, and by its name "
            f"rows {unit.start} to {unit.stop} of {unit.shard}"
        )


def _overlaps(records: list[UnitRecord]) -> Iterator[str]:
    stop = 0
    for record in sorted(records, key=lambda record: record.start):
        if record.start < stop:
            yield f"{record.part}: it holds rows of {record.shard} that another part holds as well"
        stop = max(stop, record.stop)
