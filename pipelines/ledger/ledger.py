"""The ledger of an output folder: its parts, the job that they belong to, and the manifest that closes the job.

Layout: parts at the top; `_batchloom/job.json` holds the components of the fingerprint, so that a refusal can name what
differs; `_batchloom/probe.json`, for jobs with several ranks, holds one rank's answers (replicas/probe.py);
`_batchloom/manifest.json` and `_SUCCESS` are written last. Only the parts say which units are done.
"""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from batchloom.pipelines.errors import JobError, OutputError
from batchloom.pipelines.ledger.parts import check_pages, is_part_name, read_record
from batchloom.pipelines.metrics import Manifest, UnitRecord
from batchloom.pipelines.planning.fingerprint import differences
from batchloom.pipelines.replicas.probe import Answers
from batchloom.pipelines.storage import Store

log = logging.getLogger(__name__)

JOB = "_batchloom/job.json"
PROBE = "_batchloom/probe.json"
MANIFEST = "_batchloom/manifest.json"
SUCCESS = "_SUCCESS"
READ_THREADS = 16
ENDING = len("-00000000.parquet")  # of the end of a part's name that all parts of a job share
PROBE_BELONGS_TO = ("batchloom", "fingerprint")  # stored answers are valid only where these are equal


@dataclass(frozen=True)
class Found:
    """The contents of an output folder."""

    parts: Mapping[str, int]
    """Parquet files at the top: bytes by name."""
    others: tuple[str, ...]
    """Other files, without hidden ones."""
    job: Mapping[str, Any] | None
    """`_batchloom/job.json`."""
    is_closed: bool
    """Whether the manifest exists, and `_SUCCESS`, which is written after it."""


def look(store: Store) -> Found:
    """List an output folder. Raises: OutputError where its job.json is damaged."""
    names = store.names()
    shown = [name for name in names if not name.startswith(("_", "."))]
    return Found(
        parts={name: names[name] for name in shown if name.endswith(".parquet")},
        others=tuple(name for name in shown if not name.endswith(".parquet")),
        job=_read_json(store, JOB) if JOB in names else None,
        is_closed=MANIFEST in names and SUCCESS in names,
    )


def refuse_foreign(store: Store, found: Found, mode: str, job: Mapping[str, Any], planned: Collection[str]) -> None:
    """Check that every part in the output belongs to this job's plan; changes nothing.

    `mode`: as in OutputConfig. `job`: what JOB would hold. `planned`: the names of all parts that this job will have.
    Raises: OutputError where the output holds anything else that `mode` does not permit.
    """
    held = sorted([*found.parts, *found.others])
    if not held:
        return
    if mode == "error":
        raise OutputError(
            f"Output {store.url} is not empty ({_some(held)}) and output.mode is error. "
            "Choose an empty folder, or output.mode: resume or overwrite."
        )
    if found.job is None:
        raise OutputError(
            f"Output {store.url} holds files that no batchloom job wrote ({_some(held)}). "
            "Choose an empty folder; they are not removed under output.mode: overwrite either."
        )
    strangers = sorted(name for name in found.parts if not is_part_name(name))
    if strangers:
        raise OutputError(
            f"Output {store.url} holds Parquet files that are no parts ({_some(strangers)}): readers would take them "
            "for answers, and output.mode: overwrite removes no stranger's file. Take them away, or choose another "
            "output.path."
        )
    foreign = sorted(name for name in found.parts if name not in planned)
    if mode == "overwrite" or not foreign:
        return
    differing = list(differences(found.job["fingerprint_of"], job["fingerprint_of"]))
    if differing:
        raise OutputError(
            f"Output {store.url} belongs to another configuration:\n"
            + "".join(f"  {line}\n" for line in differing)
            + "Change the job file back, choose another output.path, or set output.mode: overwrite."
        )
    raise OutputError(
        f"Output {store.url} holds {len(foreign)} parts of inputs that are gone or have changed since "
        f"({_some(foreign)}). Resuming would mix old answers with new ones. "
        "Put the inputs back, choose another output.path, or set output.mode: overwrite."
    )


def refuse_company(store: Store, planned: Collection[str]) -> None:
    """Check, at the end, that no concurrent job has written to the output.

    Raises: JobError where it holds parts that were not planned.
    """
    foreign = sorted(name for name in look(store).parts if name not in planned)
    if foreign:
        kinds = ", ".join(sorted({f"*{name[-ENDING:]}" for name in foreign}))
        raise JobError(
            f"Output {store.url} holds {len(foreign)} parts that another job wrote while this one ran ({kinds}), so "
            "rows would be there twice, and the output is not closed. Remove those parts and run this job again, or "
            "remove this job's and run the other."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def open_job(store: Store, found: Found, mode: str, job: Mapping[str, Any]) -> None:
    """Prepare the folder: remove the manifest and `_SUCCESS`, under overwrite also the parts, and write job.json.

    Raises: OutputError where the folder cannot be written, before anything is computed.
    """
    names = store.names()
    try:
        store.remove([name for name in (SUCCESS, MANIFEST) if name in names])
        if mode == "overwrite":
            store.remove(list(found.parts))
        store.put(JOB, json.dumps(job, indent=1, sort_keys=True).encode())
    except OSError as error:  # fsspec's filesystems raise it for missing permissions and buckets, too
        raise OutputError(f"Output {store.url} cannot be written: {error}. Choose a folder that can be.") from error


def whole_parts(store: Store, found: Found, planned: Collection[str]) -> list[UnitRecord]:
    """Return the records of the planned parts that exist and are intact; a truncated or altered one counts as not done.

    Each part is read in full: its hash is compared with the manifest's, or, without a manifest, computed for it.
    """
    manifest = read_manifest(store)
    written = {record.part: record for record in manifest.parts} if manifest else {}

    def one(name: str) -> UnitRecord | None:
        try:
            content = store.read(name)
            record, _ = read_record(name, content)
            if name not in written:  # its hash is not recorded, so its pages' checksums are verified
                check_pages(content)
        except ValueError as error:
            log.warning("%s is computed again: %s", name, error)
            return None
        if record.sha256 != written.get(name, record).sha256:
            log.warning("%s is computed again: its bytes are not the ones that the manifest names", name)
            return None
        return record

    with ThreadPoolExecutor(READ_THREADS) as pool:
        records = pool.map(one, [name for name in found.parts if name in planned])
        return [record for record in records if record is not None]


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
        return Manifest.from_dict(_read_json(store, MANIFEST))
    except (TypeError, KeyError) as error:
        raise _damaged(store, MANIFEST, f"it lacks or has too much: {error}") from error


def _read_json(store: Store, name: str) -> dict[str, Any]:
    try:
        values = json.loads(store.read(name))
    except ValueError as error:
        raise _damaged(store, name, f"it is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise _damaged(store, name, "it holds no keys")
    return values


def _damaged(store: Store, name: str, what: str) -> OutputError:
    remedy = (
        "Remove it and run the job again: what is done stays, and it is written anew from the parts."
        if name == MANIFEST
        else "Put the file back, or choose another output.path."
    )
    return OutputError(f"{store.path(name)} is not as batchloom wrote it: {what}. {remedy}")


def read_probe(store: Store, job: Mapping[str, Any]) -> Answers | None:
    """Return one rank's stored answers to the probe; None where another version or another job computed them."""
    if PROBE not in store.names():
        return None
    kept = json.loads(store.read(PROBE))
    answers: Answers = kept["answers"]
    return answers if all(kept[name] == job[name] for name in PROBE_BELONGS_TO) else None


def keep_probe(store: Store, job: Mapping[str, Any], answers: Answers) -> None:
    """Store one rank's answers to the probe."""
    kept = {**{name: job[name] for name in PROBE_BELONGS_TO}, "answers": answers}
    store.put(PROBE, json.dumps(kept).encode())
