"""The ledger of an output folder: its parts, the job that they belong to, and the manifest that closes the job.

Layout: parts at the top; `_batchloom/job.json` holds the components of the fingerprint, so that a refusal can name what
differs; `_batchloom/probe.json`, for jobs with several ranks, holds one rank's answers (replicas/probe.py);
`_batchloom/manifest.json` and `_SUCCESS` are written last. Only the parts say which units are done, and whose they are.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from batchloom.pipelines.errors import JobError, OutputError, StoreError
from batchloom.pipelines.ledger.parts import read_part
from batchloom.pipelines.metrics import Manifest, UnitRecord
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.records import from_json, parsed
from batchloom.pipelines.replicas.probe import Answers
from batchloom.pipelines.storage import Store, Stored

log = logging.getLogger(__name__)

JOB = "_batchloom/job.json"
PROBE = "_batchloom/probe.json"
MANIFEST = "_batchloom/manifest.json"
SUCCESS = "_SUCCESS"
READ_THREADS = 16
PROBE_BELONGS_TO = ("batchloom", "fingerprint")  # stored answers are valid only where these are equal


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """`_batchloom/job.json`: the job that was started last in a folder. It explains and decides nothing."""

    job: Mapping[str, Any]
    """As resolved, without secrets."""
    fingerprint: str
    fingerprint_of: Mapping[str, Any]
    """What the fingerprint is a hash of."""


@dataclass(frozen=True)
class Found:
    """The contents of an output folder."""

    parts: Mapping[str, Stored]
    """Parquet files, by name: parts, and strangers' files that readers would take for parts."""
    others: tuple[str, ...]
    """Other files, without hidden ones."""
    job: JobRecord | None
    """None where there is none, or it is damaged."""
    is_closed: bool
    """Whether the manifest exists, and `_SUCCESS`, which is written after it."""


def look(store: Store) -> Found:
    """List an output folder."""
    files = store.listing()
    shown = [name for name in files if not name.startswith(("_", "."))]
    return Found(
        parts={name: files[name] for name in shown if name.endswith(".parquet")},
        others=tuple(name for name in shown if not name.endswith(".parquet")),
        job=_read_job(store) if JOB in files else None,
        is_closed=MANIFEST in files and SUCCESS in files,
    )


def open_job(store: Store, job: Mapping[str, Any], overwritten: Iterable[str]) -> None:
    """Prepare the folder: remove the manifest, `_SUCCESS` and the parts to be overwritten, and write job.json.

    Raises: OutputError where the folder cannot be written, before anything is computed.
    """
    names = store.names()
    try:
        store.remove([name for name in (SUCCESS, MANIFEST) if name in names])
        store.remove(list(overwritten))
        store.put(JOB, json.dumps(job, indent=1, sort_keys=True).encode())
    except StoreError as error:
        raise OutputError(f"Output {store.url} cannot be written. {error}") from error


def whole_parts(store: Store, found: Found, planned: Mapping[str, Unit], kept: Collection[str]) -> list[UnitRecord]:
    """Return the records of the planned parts that exist and are intact, and of the kept ones, in no fixed order.

    A planned part that is not whole is named in the log and counts as not done. Each part is read once, in full: its
    seal covers every byte, and a manifest, where there is one, must name the same hash.
    `kept`: parts of inputs that are gone. Raises: OutputError where one of them is not whole.
    """
    written = _written(store)

    def one(name: str) -> UnitRecord | None:
        try:
            return _whole_part(store, name, planned.get(name), written.get(name))
        except (ValueError, FileNotFoundError) as error:
            if name in kept:
                raise OutputError(
                    f"{store.path(name)}: {error}. Its input is gone, so it cannot be computed again. Put the input or "
                    "the part back, or remove the part to go on without its rows."
                ) from error
            log.warning("%s is computed again: %s", name, error)
            return None

    with ThreadPoolExecutor(READ_THREADS) as pool:
        records = pool.map(one, [name for name in found.parts if name in planned or name in kept])
        found_whole = [record for record in records if record is not None]
    return [replace(record, version=found.parts[record.part].version) for record in found_whole]


def _whole_part(store: Store, name: str, unit: Unit | None, written: UnitRecord | None) -> UnitRecord:
    part = read_part(name, store.read(name))
    if unit is not None and part.unit != unit.id:
        raise ValueError(f"its footer is that of unit {part.unit}, and its name that of {unit.id}")
    if written is not None and part.record.sha256 != written.sha256:
        raise ValueError("its bytes are not the ones that the manifest names")
    return part.record


def _written(store: Store) -> dict[str, UnitRecord]:
    """Return the manifest's records by part; none where it is absent or damaged: the parts' seals suffice."""
    try:
        manifest = read_manifest(store)
    except OutputError as error:
        log.warning("the manifest is written anew: %s", error)
        return {}
    return {record.part: record for record in manifest.parts} if manifest else {}


def check_parts(store: Store, records: Sequence[UnitRecord]) -> Found:
    """Return what the folder holds at the end of a job, after a check that every part is there as its record says.

    One listing tells; a part is read only where its size or version is not the record's, as after a second driver of
    the same job has replaced equal bytes by equal bytes. Raises: JobError, naming parts, where some are not there.
    """
    found = look(store)
    stored = {record.part: Stored(record.bytes, record.version) for record in records}
    odd = [record for record in records if found.parts.get(record.part) != stored[record.part]]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        are_there = list(pool.map(lambda record: record.part in found.parts and _is_equal(store, record), odd))
    lost = [record.part for record, is_there in zip(odd, are_there, strict=True) if not is_there]
    if lost:
        raise JobError(
            f"Output {store.url} lost {len(lost)} of {len(records)} parts while the job ran: they were removed or "
            f"replaced ({some(sorted(lost))}). The output is not closed; the same command computes them again."
        )
    return found


def _is_equal(store: Store, record: UnitRecord) -> bool:
    try:
        return hashlib.sha256(store.read(record.part)).hexdigest() == record.sha256
    except FileNotFoundError:
        return False


def close_job(store: Store, manifest: Manifest) -> None:
    """Write the manifest, then `_SUCCESS`, the marker that other tools wait for."""
    store.put(MANIFEST, json.dumps(manifest.to_dict(), indent=1, sort_keys=True).encode())
    store.put(SUCCESS, b"")
    store.remove_temporary()


def read_manifest(store: Store) -> Manifest | None:
    """Return the manifest, or None where there is none. Raises: OutputError where it is damaged."""
    if MANIFEST not in store.names():
        return None
    try:
        return Manifest.from_dict(parsed(store.read(MANIFEST)))
    except ValueError as error:
        raise OutputError(
            f"{store.path(MANIFEST)} is not as batchloom wrote it: {error}. Remove it and run the job again: what is "
            "done stays, and it is written anew from the parts."
        ) from error


def _read_job(store: Store) -> JobRecord | None:
    try:
        return from_json(JobRecord, parsed(store.read(JOB)))
    except ValueError as error:
        log.warning("%s is not as batchloom wrote it (%s); it is written anew by the next run", store.path(JOB), error)
        return None


def some(names: Sequence[str]) -> str:
    """Return the first few names, for messages."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def read_probe(store: Store, job: Mapping[str, Any]) -> Answers | None:
    """Return one rank's stored answers to the probe; None where another version or another job computed them."""
    if PROBE not in store.names():
        return None
    try:
        kept = parsed(store.read(PROBE))
        answers: Answers = kept["answers"]
        return answers if all(kept[name] == job[name] for name in PROBE_BELONGS_TO) else None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is not as batchloom wrote it (%r); it is computed again", store.path(PROBE), error)
        return None


def keep_probe(store: Store, job: Mapping[str, Any], answers: Answers) -> None:
    """Store one rank's answers to the probe."""
    kept = {**{name: job[name] for name in PROBE_BELONGS_TO}, "answers": answers}
    store.put(PROBE, json.dumps(kept).encode())
