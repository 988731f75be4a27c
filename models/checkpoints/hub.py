"""Resolve a model's URI to its files: a local folder, any fsspec URL, hf://org/name@revision. It knows no tensor.

    /models/bart-large-cnn, file:///models/...   used in place
    s3://bucket/bart, memory://bart, ...         small files are cached once per node, weights are streamed from there
    hf://facebook/bart-large-cnn@main            everything is cached once per node (hubs limit the rate of requests)

The cache is cache.py's; a model whose listing (sizes, etags) has changed is fetched again.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from batchloom.models.checkpoints import cache
from batchloom.models.checkpoints.asking import FIRST, NONE, PLANNED, ask
from batchloom.models.checkpoints.pinned import DECIDING, PinnedModel, Version
from batchloom.models.errors import CheckpointError
from batchloom.models.patience import GaveUpError, Patience

logger = logging.getLogger(__name__)

# Weight formats that we do not read; no file that we need ends in these.
_FOREIGN_SUFFIXES = {".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".ckpt", ".gguf", ".tflite"}
_WEIGHT_SUFFIXES = {".safetensors", ".bin"}
_PINNED = re.compile(r"hf://.+@[0-9a-f]{40}$")

Listing = dict[str, dict[str, Any]]  # the filesystem's entry for each file, by name


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are: the small ones always in the local `folder`, weights under `root` of `filesystem`."""

    uri: str
    folder: Path
    filesystem: fsspec.AbstractFileSystem
    root: str
    file_names: tuple[str, ...]
    versions: Mapping[str, Version] = field(default_factory=dict)
    """Of a store's files, by name."""
    pinned: PinnedModel | None = None
    """The files that are expected; None: whatever is there."""

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    def weight_path(self, name: str) -> str:
        """Return a weight file's path on `filesystem`."""
        return f"{self.root.rstrip('/')}/{name}"

    def read_small(self, name: str) -> bytes | None:
        """Return the contents of one of the small files, None where it does not exist.

        Raises: CheckpointError where it cannot be read, or is another one than the pinned.
        """
        content = None
        if name in self.file_names:
            try:
                content = (self.folder / name).read_bytes()
            except OSError as error:
                raise CheckpointError(f"Model {self.uri!r}: {name} cannot be read ({error}).") from error
        if self.pinned is not None and name in DECIDING:
            self.pinned.check(name, None if content is None else hashlib.sha256(content).hexdigest())
        return content

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the parsed file, None where it does not exist.

        Raises: CheckpointError as read_small, and where it is no JSON object.
        """
        content = self.read_small(name)
        if content is None:
            return None
        try:
            parsed = json.loads(content.decode("utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{self.uri}: {name} is not valid JSON ({error}). Copy the file again.") from error
        except RecursionError as error:
            raise CheckpointError(f"{self.uri}: {name} nests deeper than any checkpoint's. Copy it again.") from error
        if not isinstance(parsed, dict):
            raise CheckpointError(f"{self.uri}: {name} must hold a JSON object; found {type(parsed).__name__}.")
        return parsed

    def read_config(self) -> dict[str, Any]:
        """Return config.json with what a plan puts in place of its values. Raises: CheckpointError, as read_json, and
        where there is no config.json."""
        found = self.read_json("config.json")
        if found is None:
            raise CheckpointError(
                f"Model {self.uri!r} has no config.json, so it is no checkpoint. Found: {', '.join(self.file_names)}."
                f"{self.advice}"
            )
        return found if self.pinned is None else {**found, **self.pinned.changes}

    @property
    def advice(self) -> str:
        """What to do about weights of a form that is not read; empty where there are none here."""
        if not any(name.endswith(".gguf") for name in self.file_names):
            return ""
        return (
            " GGUF is not read: use the checkpoint that it was made from, or let transformers convert it: "
            "from_pretrained(..., gguf_file=...), then save_pretrained."
        )

    def check_small(self) -> None:
        """Compare all small files that decide answers with the pinned ones. Raises: CheckpointError."""
        for name in DECIDING if self.pinned is not None else ():
            self.read_small(name)

    def version_now(self, name: str) -> Version:
        """Return the version that a store's file has now. Raises: CheckpointError where the store does not answer."""
        entry = _list(self.filesystem, self.root, self.uri, PLANNED).get(name)
        return ("missing",) if entry is None else _full_version(entry)


def local_folder(uri: str) -> Path:
    """Return a local folder with the model's small files: configuration and tokenizer. Raises: as open_source."""
    return open_source(uri).folder


def open_source(model: str | PinnedModel) -> ModelSource:
    """Find a model's files, fetching into the cache what is not local; files of a pinned model are held to its plan.

    Raises: CheckpointError where the URI's scheme is not installed, the folder is missing, empty or a file, or a
    listing or download fails.
    """
    if isinstance(model, PinnedModel):
        return replace(_open(str(model), PLANNED), pinned=model)
    return _open(model, FIRST)


def _open(uri: str, patience: Patience) -> ModelSource:
    cached = cache.newest(uri) if uri.startswith("hf://") else None
    if cached is not None and _PINNED.match(uri):
        return _cached_source(uri, cached)  # a commit never changes: no request needed
    filesystem, root = _filesystem_of(uri)
    try:
        listing = _list(filesystem, root, uri, NONE if cached else patience)
    except CheckpointError as error:
        if cached is not None:
            logger.warning("%s Using the copy of it in %s.", error, cached.folder)
            return _cached_source(uri, cached)
        raise
    if isinstance(filesystem, LocalFileSystem):
        return ModelSource(uri, Path(root), filesystem, root, tuple(sorted(listing)))
    names = tuple(sorted(name for name in listing if _is_ours(name)))
    if uri.startswith("hf://"):
        names = _one_weight_format(names)
        return _cached_source(uri, _fetch_once(filesystem, root, uri, {name: listing[name] for name in names}))
    small = {name: listing[name] for name in names if not _is_weight(name)}
    versions = {name: _full_version(listing[name]) for name in names}
    return ModelSource(uri, _fetch_once(filesystem, root, uri, small).folder, filesystem, root, names, versions)


def _fetch_once(filesystem: fsspec.AbstractFileSystem, root: str, uri: str, files: Listing) -> cache.CachedModel:
    return cache.fetch_once(filesystem, root, uri, files, [(name, _version(files[name])) for name in sorted(files)])


def _cached_source(uri: str, cached: cache.CachedModel) -> ModelSource:
    return ModelSource(uri, cached.folder, LocalFileSystem(), str(cached.folder), cached.names)


def _filesystem_of(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        filesystem, root = fsspec.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        hint = "pip install 'batchloom[hub]'" if uri.startswith("hf://") else "install the package for this scheme"
        raise CheckpointError(f"Cannot open model {uri!r}: {error}. Perhaps: {hint}.") from error
    return filesystem, root


def _list(filesystem: fsspec.AbstractFileSystem, root: str, uri: str, patience: Patience) -> Listing:
    """Return the files directly in the folder, by name, as they are now: not as an earlier listing had them.

    A folder that was planned with and is not found may be there again after an outage.
    """

    def attempt() -> list[dict[str, Any]]:
        filesystem.invalidate_cache()
        try:
            return list(filesystem.ls(root, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            if patience is PLANNED:
                raise
            return []

    try:
        entries = ask(filesystem, attempt, patience)
    except GaveUpError as error:
        if not isinstance(error.error, FileNotFoundError | NotADirectoryError):
            raise CheckpointError(f"Model {uri!r} cannot be listed: {error}") from error
        entries = []
    # Symbolic links are listed as such; a hub's own cache consists of them.
    kinds = {entry["name"]: entry["type"] for entry in entries}
    links = {name for name, kind in kinds.items() if kind not in ("file", "directory") and filesystem.isfile(name)}
    entries = [entry for entry in entries if entry["type"] == "file" or entry["name"] in links]
    files = {PurePosixPath(entry["name"]).name: entry for entry in entries}
    if not files or (len(files) == 1 and entries[0]["name"].rstrip("/") == root.rstrip("/")):
        found = "that is a file" if files else "no such folder, or it is empty"
        raise CheckpointError(
            f"Model {uri!r}: {found}. Give a folder that holds config.json, the weights and the tokenizer's files."
        )
    return files


def _is_ours(name: str) -> bool:
    return PurePosixPath(name).suffix not in _FOREIGN_SUFFIXES


def _is_weight(name: str) -> bool:
    return PurePosixPath(name).suffix in _WEIGHT_SUFFIXES


def _one_weight_format(names: tuple[str, ...]) -> tuple[str, ...]:
    """Keep safetensors where there are any, .bin files otherwise: never both, since they hold the same weights."""
    if any(name.endswith(".safetensors") for name in names):
        return tuple(name for name in names if not name.endswith((".bin", ".bin.index.json")))
    return names


_VERSION_KEYS = (
    "ETag",
    "etag",
    "blob_id",
    "md5Hash",
    "content_md5",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
)


def _version(entry: dict[str, Any]) -> Any:
    """Return what changes with a file's content: its size, and the first of these keys that its filesystem gives."""
    return entry.get("size"), next((entry[key] for key in _VERSION_KEYS if entry.get(key)), None)


def _full_version(entry: dict[str, Any]) -> Version:
    """Return all that changes with a file: equal contents that were written again later have another version."""
    return (f"{entry.get('size')} bytes", *(f"{key} {entry[key]}" for key in _VERSION_KEYS if entry.get(key)))
