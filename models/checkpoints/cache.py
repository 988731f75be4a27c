"""A node's cache of model files: fetched once, whole or not at all, and checked before they are used.

    <cache>/models/<uri>-<listing>/         the files; the name is made of hashes of the URI and of sizes and etags
    <cache>/models/<uri>-<listing>.json     size, sha256 and version of each file, written before the folder appears
    <cache>/models/<uri>-<listing>.lock     held while the files are fetched

A file whose version (inode and times) is the recorded one was not written since it was hashed; others are hashed again.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec

from batchloom.models.cache_home import NoHomeError, cache_home
from batchloom.models.checkpoints.asking import ask
from batchloom.models.errors import CheckpointError
from batchloom.models.patience import GaveUpError
from batchloom.models.redaction import redacted

logger = logging.getLogger(__name__)

FOLDER = "models"  # of the cache
Entry = Mapping[str, Any]
"""What a filesystem's listing tells of a file."""


@dataclass(frozen=True)
class CachedModel:
    """A model's files on this node, each of them whole."""

    folder: Path
    names: tuple[str, ...]


def newest(uri: str) -> CachedModel | None:
    """Return the newest whole copy of a model, of whatever version; None where there is none."""
    try:
        folders = [path for path in (cache_home() / FOLDER).glob(f"{_digest(uri)}-*") if path.is_dir()]
    except NoHomeError:
        return None
    by_age = sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)
    return next((cached for folder in by_age if (cached := _checked(folder)) is not None), None)


def fetch_once(
    filesystem: fsspec.AbstractFileSystem, root: str, uri: str, files: Mapping[str, Entry], versions: Any
) -> CachedModel:
    """Return the copy of these files, fetching it where there is none or a damaged one.

    `versions`: what changes with the files' contents. Processes that start together wait for the first one, and none
    sees a partial copy. Raises: CheckpointError where a file cannot be fetched, or is not what the listing says, and
    where the cache cannot be written.
    """
    try:
        folder = cache_home() / FOLDER / f"{_digest(uri)}-{_digest(versions)}"
        if (cached := _checked(folder)) is not None:
            return cached
        folder.parent.mkdir(parents=True, exist_ok=True)
        return _fetch_into(folder, filesystem, root, uri, files)
    except NoHomeError as error:
        raise CheckpointError(f"Model {uri!r} has no place on this machine: {error}.") from error
    except OSError as error:
        raise CheckpointError(
            f"Model {uri!r} cannot be put into the cache of this machine: {error}. Make room there, or set "
            "BATCHLOOM_CACHE to a folder that this user may write to."
        ) from error


def _fetch_into(
    folder: Path, filesystem: fsspec.AbstractFileSystem, root: str, uri: str, files: Mapping[str, Entry]
) -> CachedModel:
    from filelock import FileLock  # takes asyncio along, and models in local folders need no cache

    with FileLock(f"{folder}.lock"):
        if (cached := _checked(folder)) is not None:
            return cached
        logger.info("fetching %d files of %s into %s", len(files), redacted(uri), folder)
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
        try:
            record = {
                name: _fetch(filesystem, f"{root.rstrip('/')}/{name}", partial / name, entry, uri)
                for name, entry in files.items()
            }
            _put_in_place(partial, folder, record)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return CachedModel(folder, tuple(sorted(files)))


def _put_in_place(partial: Path, folder: Path, record: Mapping[str, Any]) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():  # damaged; a process that reads it keeps what it has opened
        damaged = folder.rename(partial.with_name(f"{partial.name}-damaged"))
        shutil.rmtree(damaged, ignore_errors=True)
    described = partial.with_name(f"{partial.name}.json")
    described.write_text(json.dumps(record), encoding="utf-8")
    described.replace(_record_of(folder))
    partial.rename(folder)


def _fetch(filesystem: fsspec.AbstractFileSystem, remote: str, local: Path, entry: Entry, uri: str) -> dict[str, Any]:
    """Fetch one file, compare it with the listing, and return its record."""
    try:
        ask(filesystem, lambda: filesystem.get_file(remote, str(local)), num_bytes=entry.get("size"))
        with open(local, "rb") as file:
            os.fsync(file.fileno())  # or a power failure could leave zeros under the recorded version
            sha256 = _sha256(file)
    except (GaveUpError, OSError) as error:
        raise CheckpointError(f"Model {uri!r}: fetching {local.name} failed: {error}") from error
    expected, found = entry.get("size"), local.stat().st_size
    if expected is not None and found != expected:
        raise CheckpointError(
            f"Model {uri!r}: {local.name} should be {expected} bytes; {found} came. It changed meanwhile, or the "
            "connection broke: try again."
        )
    if not _is_what_the_hub_has(local, sha256, entry):
        raise CheckpointError(
            f"Model {uri!r}: the {found} bytes of {local.name} that came are not the ones that the hub has a hash of. "
            "It changed meanwhile, or something on the way changed it: try again, and mind proxies and mirrors."
        )
    return {"size": found, "sha256": sha256, "version": _version(local.stat())}


def _is_what_the_hub_has(local: Path, sha256: str, entry: Entry) -> bool:
    """Compare a file with the hub's hash of it, where its listing has one: sha256 of large files, git's of others."""
    lfs, blob = entry.get("lfs"), str(entry.get("blob_id"))
    if lfs:
        return sha256 == (lfs["sha256"] if isinstance(lfs, Mapping) else lfs.sha256)
    if not re.fullmatch("[0-9a-f]{40}", blob):
        return True
    content = local.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == blob


def _checked(folder: Path) -> CachedModel | None:
    """Return a copy whose files are all as they were when they were fetched; None where there is none."""
    if not os.path.lexists(folder):
        return None
    try:
        record = json.loads(_record_of(folder).read_text(encoding="utf-8"))
        _refuse_damage(folder, record)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        logger.warning("%s in the cache of models is not used: %s", folder, error)
        return None
    return CachedModel(folder, tuple(sorted(record)))


def _refuse_damage(folder: Path, record: Mapping[str, Any]) -> None:
    """Raises: OSError or ValueError where a file is not the one that was fetched, or a link, which could lead outside;
    KeyError, TypeError or AttributeError where the record is none."""
    if folder.is_symlink():
        raise ValueError("it is a link")
    for name, recorded in record.items():
        if name != os.path.basename(name):
            raise ValueError(f"its record names {name!r}")
        with open(folder / name, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW)) as file:
            found = os.fstat(file.fileno())
            if found.st_size != recorded["size"]:
                raise ValueError(f"{name} has {found.st_size} bytes, and {recorded['size']} were fetched")
            if _version(found) != recorded["version"] and _sha256(file) != recorded["sha256"]:
                raise ValueError(f"{name} was changed since it was fetched")


def _sha256(file: IO[bytes]) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # typeshed wants a raw file


def _version(found: os.stat_result) -> list[int]:
    """Return what no write leaves as it is. The change time cannot be set back."""
    return [found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _record_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]
