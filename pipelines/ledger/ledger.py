"""The ledger of an output folder: its parts, their records, the job that they belong to, and the manifest.

Layout: parts at the top. `_batchloom/job.json` holds the components of the fingerprint, so that a refusal can name what
differs; `_batchloom/probe.json`, for jobs with several ranks, one rank's answers (replicas/probe.py). While a job runs,
`_batchloom/heartbeat.json` tells how far it is, `_batchloom/answers` holds the answers of units whose part is not
finished, and `_batchloom/records` what is known of parts that are. At the end their records are in
`_batchloom/parts.pq`, and `_batchloom/manifest.json` and `_SUCCESS` are written last. Only the parts, and answers, say
what is done: records save reading them.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from batchloom.pipelines.columns.as_json import json_schema
from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.errors import JobError, OutputError, PipelineError, StoreError
from batchloom.pipelines.ledger import answers
from batchloom.pipelines.ledger.manifest import Manifest, Summary
from batchloom.pipelines.ledger.part_files import SEALS, PartFile, seal_name
from batchloom.pipelines.ledger.parts import ENDINGS, Footer, output_folder
from batchloom.pipelines.ledger.register import Register
from batchloom.pipelines.ledger.sealed import sealed
from batchloom.pipelines.records import from_json, parsed
from batchloom.pipelines.stores.storage import Store, Stored

log = logging.getLogger(__name__)

JOB = "_batchloom/job.json"
HEARTBEAT = "_batchloom/heartbeat.json"  # ledger/heartbeat.py
PARTS = "_batchloom/parts.pq"
RECORDS = "_batchloom/records"
COLUMNS = "_batchloom/columns.pq"
MANIFEST = "_batchloom/manifest.json"
SUCCESS = "_SUCCESS"
LOGGED_RECORDS, LOGGED_SECONDS = 1000, 60.0  # records, or seconds of them, that a file of RECORDS holds
READ_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """`_batchloom/job.json`: the job that was started last in a folder. It explains, and decides nothing but
    which version of a table is read (planning/pinned.py)."""

    job: Mapping[str, Any]
    """As resolved, without secrets."""
    fingerprint: str
    fingerprint_of: Mapping[str, Any]
    """What the fingerprint is a hash of."""
    retries: tuple[Mapping[str, Any], ...] = ()
    """Options of a task with which errors were retried: fingerprint, kinds, task_options."""
    layout_of: Mapping[str, Any] = field(default_factory=dict)
    """What decides the parts' columns beside the answers."""


@dataclass(frozen=True)
class Found:
    """The contents of an output folder."""

    parts: Mapping[str, Stored]
    """Files that end as a part's, by name: parts, and strangers' files that readers would take for parts."""
    others: tuple[str, ...]
    """Other files, without hidden ones."""
    job: JobRecord | None
    """None where there is none, or it is damaged."""
    is_closed: bool
    """Whether the manifest exists, and `_SUCCESS`, which is written after it."""
    answers: Mapping[str, Sequence[str]]
    """Files with answers of unfinished parts, by the folder of the part."""
    records: tuple[str, ...]
    """Files with records of parts."""
    seals: frozenset[str] = frozenset()
    """Files with the accounts of parts of JSON Lines."""

    def has_account(self, part: str, sha256: str) -> bool:
        """Return whether the account of a part with these bytes is there: Parquet has it inside."""
        return part.endswith(".parquet") or seal_name(part, sha256) in self.seals


def look(store: Store) -> Found:
    """List an output folder."""
    files = store.listing()
    shown = [name for name in files if not _is_free(name)]
    return Found(
        parts={name: files[name] for name in shown if name.endswith(ENDINGS)},
        others=tuple(name for name in shown if not name.endswith(ENDINGS)),
        job=_read_job(store) if JOB in files else None,
        is_closed=MANIFEST in files and SUCCESS in files,
        answers=answers.by_folder(files),
        records=tuple(name for name in sorted(files) if name == PARTS or name.startswith(f"{RECORDS}/")),
        seals=frozenset(name for name in files if name.startswith(f"{SEALS}/")),
    )


def deeper(found: Found) -> str:
    """Return advice for a folder that is no output: where outputs lie below it."""
    folders = {folder for folder in map(output_folder, found.parts) if folder is not None}
    return f" Below it are outputs: {some(sorted(folders))}." if folders else " Check the path."


def _is_free(name: str) -> bool:
    """Whether a file of this name is nobody's concern: readers of the folder skip it, all of them. Some take every
    `*.parquet`, whatever it begins with."""
    is_data = name.endswith(ENDINGS) and "/" not in name
    return name.startswith(("_", ".")) and not is_data


def open_job(store: Store, job: Mapping[str, Any], overwritten: Found | None, superseded: Sequence[str] = ()) -> None:
    """Prepare the folder: remove the manifest, `_SUCCESS` and what is to be overwritten, and write job.json.

    `superseded`: parts whose rows others have.

    Raises: OutputError where the folder cannot be written, before anything is computed.
    """
    names = store.names()
    try:
        store.remove([*(name for name in (SUCCESS, MANIFEST) if name in names), *superseded])
        if overwritten is not None:
            store.remove([*overwritten.records, *overwritten.parts])
            store.remove_folder(answers.FOLDER)
            if overwritten.seals:
                store.remove_folder(SEALS)
        store.put(JOB, json.dumps(job, indent=1, sort_keys=True).encode())
    except StoreError as error:
        raise OutputError(f"Output {store.url} cannot be written. {error}") from error


def recorded(store: Store, found: Found) -> Register:
    """Return all records that are kept, of parts that may be gone or have changed since; the latest of a part last."""

    def one(name: str) -> Register:
        try:
            return Register.read(store.read(name))
        except (ValueError, FileNotFoundError) as error:
            log.warning("%s is not used, and the parts that it tells of are read: %s", store.path(name), error)
            return Register.of([])

    with ThreadPoolExecutor(READ_THREADS) as pool:
        return Register.joined(pool.map(one, found.records))


def known_parts(store: Store, found: Found, names: Iterable[str]) -> tuple[Register, list[str]]:
    """Return the records of the parts that have the size and version of their record and their account, and the other
    parts."""
    wanted = set(names)
    kept = recorded(store, found)
    row_of: dict[str, int] = {}
    columns = (kept.table[name].to_pylist() for name in ("part", "bytes", "version", "sha256"))
    for row, (name, size, version, sha256) in enumerate(zip(*columns, strict=True)):
        is_same = name in wanted and found.parts[name] == Stored(size, version) and version
        if is_same and found.has_account(name, sha256):
            row_of[name] = row
    return kept.rows([*row_of.values()]), sorted(wanted - set(row_of))


def whole_parts(store: Store, found: Found, names: Iterable[str]) -> tuple[Register, dict[str, str]]:
    """Return the records of the parts that are intact, and for the others what is wrong with them.

    A part without a record that fits is read whole: its seal covers every byte.
    """
    known, unknown = known_parts(store, found, names)
    read: list[PartRecord] = []
    wrong: dict[str, str] = {}

    def one(name: str) -> Footer | str:
        try:
            return PartFile.of(store, name).whole().footer
        except (ValueError, FileNotFoundError) as error:
            return str(error)

    with ThreadPoolExecutor(READ_THREADS) as pool:
        for name, footer in zip(unknown, pool.map(one, unknown), strict=True):
            if isinstance(footer, str):
                wrong[name] = footer
            else:
                read.append(replace(footer.record, version=found.parts[name].version))
    return Register.joined([known, Register.of(read)]), wrong


@dataclass
class RecordLog:
    """A context that writes the records of finished parts now and then, so that a later run need not read them."""

    store: Store
    started: int = field(default_factory=time.time_ns)
    num_files: int = 0
    held: list[PartRecord] = field(default_factory=list)
    written_at: float = field(default_factory=time.monotonic)

    def __enter__(self) -> "RecordLog":
        return self

    def __exit__(self, _: object, error: object, __: object) -> None:
        if error is None or isinstance(error, PipelineError):
            self.write()

    def add(self, record: PartRecord) -> None:
        """Raises: StoreError."""
        self.held.append(record)
        if len(self.held) >= LOGGED_RECORDS or time.monotonic() - self.written_at > LOGGED_SECONDS:
            self.write()

    def write(self) -> None:
        """Write what is held. Raises: StoreError."""
        if self.held:
            name = f"{RECORDS}/{self.started:019d}-{self.num_files:06d}.pq"
            self.store.put(name, Register.of(self.held).to_bytes())
            self.num_files += 1
            self.held = []
        self.written_at = time.monotonic()


def check_parts(store: Store, register: Register) -> Found:
    """Return what the folder holds at the end of a job, after a check that every part is there as its record says.

    Raises: JobError, naming parts, where some are not there.
    """
    found = look(store)
    if lost := lost_parts(store, register, found):
        raise JobError(
            f"Output {store.url} lost {len(lost)} of {len(register)} parts while the job ran: they were removed or "
            f"replaced ({some(lost)}). The output is not closed; the same command computes them again."
        )
    return found


def lost_parts(store: Store, register: Register, found: Found) -> list[str]:
    """Return the names of the parts that are not there as their records say.

    A part is read only where its size or version is not the record's, as after a second driver of the same job has
    replaced equal bytes by equal bytes.
    """
    odd = list(changed(register, found))
    with ThreadPoolExecutor(READ_THREADS) as pool:
        are_there = list(pool.map(lambda record: record.part in found.parts and _is_equal(store, record), odd))
    lost = {record.part for record, is_there in zip(odd, are_there, strict=True) if not is_there}
    return sorted(lost | {name for name, _ in without_account(register, found)})


def without_account(register: Register, found: Found) -> Iterator[tuple[str, str]]:
    """Yield the parts whose account is not there, and its file: without it nobody can tell what they hold."""
    columns = (register.table[name].to_pylist() for name in ("part", "sha256"))
    for name, sha256 in zip(*columns, strict=True):
        if not found.has_account(name, sha256):
            yield name, seal_name(name, sha256)


def changed(register: Register, found: Found) -> Iterator[PartRecord]:
    """Yield the records of parts whose size or version is not that of the file, or that are not there."""
    columns = (register.table[name].to_pylist() for name in ("part", "bytes", "version"))
    for row, (name, size, version) in enumerate(zip(*columns, strict=True)):
        if found.parts.get(name) != Stored(size, version) or not version:
            yield register[row]


def _is_equal(store: Store, record: PartRecord) -> bool:
    try:
        return hashlib.sha256(store.read(record.part)).hexdigest() == record.sha256
    except FileNotFoundError:
        return False


def close_job(store: Store, manifest: Manifest, columns: pa.Schema | None = None) -> None:
    """Write the records and the manifest, then `_SUCCESS`, the marker that other tools wait for; remove the rest.

    `columns`: of parts that do not tell their types, which readers may ask for.
    """
    if columns is not None:
        store.put(COLUMNS, sealed(json_schema(columns).empty_table(), {}))
    store.put(PARTS, manifest.parts.to_bytes())
    store.put(MANIFEST, json.dumps(manifest.summary(), indent=1, sort_keys=True).encode())
    store.put(SUCCESS, b"")
    store.discard([HEARTBEAT], folders=[RECORDS, answers.FOLDER])
    store.discard_temporary()


def read_manifest(store: Store) -> Manifest | None:
    """Return the manifest, or None where there is none. Raises: OutputError where it or its records are damaged."""
    if MANIFEST not in store.names():
        return None
    name = MANIFEST
    try:
        summary = Summary.read(parsed(store.read(MANIFEST)))
        name = PARTS
        content = store.read(PARTS)
        if hashlib.sha256(content).hexdigest() != summary.parts_sha256:
            raise ValueError("it is not the one that the manifest names")
        return Manifest.of(summary, Register.read(content))
    except FileNotFoundError as error:
        raise OutputError(
            f"{store.path(name)} is missing. Remove {store.path(MANIFEST)} and run the job again: what is done stays, "
            "and both are written anew from the parts."
        ) from error
    except ValueError as error:
        raise OutputError(
            f"{store.path(name)} is not as batchloom wrote it: {error}. Remove it and run the job again: what is "
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
