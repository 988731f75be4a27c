"""Resolve a model's URI to its files: a local folder, any fsspec URL, hf://org/name@revision. It knows no tensor.

    /models/bart-large-cnn, file:///models/...   used in place
    s3://bucket/bart, memory://bart, ...         small files are cached once per node, weights are streamed from there
    hf://facebook/bart-large-cnn@main            everything is cached once per node (hubs limit the rate of requests)

The cache is cache.py's; a model whose listing (sizes, etags) has changed is fetched again.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from batchloom.models.checkpoints import cache
from batchloom.models.errors import CheckpointError

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

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    def weight_path(self, name: str) -> str:
        """Return a weight file's path on `filesystem`."""
        return f"{self.root.rstrip('/')}/{name}"

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the parsed file, None where it does not exist. Raises: CheckpointError where it is no JSON object."""
        if name not in self.file_names:
            return None
        try:
            parsed = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{self.uri}: {name} is not valid JSON ({error}). Copy the file again.") from error
        if not isinstance(parsed, dict):
            raise CheckpointError(f"{self.uri}: {name} must hold a JSON object; found {type(parsed).__name__}.")
        return parsed


def local_folder(uri: str) -> Path:
    """Return a local folder with the model's small files: configuration and tokenizer. Raises: as open_source."""
    return open_source(uri).folder


def open_source(uri: str) -> ModelSource:
    """Find a model's files, fetching into the cache what is not local.

    Raises: CheckpointError where the URI's scheme is not installed, the folder is missing, empty or a file, or a
    listing or download fails.
    """
    if _PINNED.match(uri) and (cached := cache.newest(uri)):
        return _cached_source(uri, cached)  # a commit never changes: no request needed
    filesystem, root = _filesystem_of(uri)
    try:
        listing = _list(filesystem, root, uri)
    except CheckpointError as error:
        if uri.startswith("hf://") and (cached := cache.newest(uri)):
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
    return ModelSource(uri, _fetch_once(filesystem, root, uri, small).folder, filesystem, root, names)


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


def _list(filesystem: fsspec.AbstractFileSystem, root: str, uri: str) -> Listing:
    """Return the files directly in the folder, by name."""
    try:
        entries = filesystem.ls(root, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        entries = []
    except Exception as error:  # each filesystem has its own errors for no network, no credentials, no permission
        raise CheckpointError(f"Model {uri!r} cannot be listed: {type(error).__name__}: {error}") from error
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


def _version(entry: dict[str, Any]) -> Any:
    """Return what changes with a file's content: its size, and the first of these keys that its filesystem gives."""
    keys = ("ETag", "etag", "blob_id", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "created")
    return entry.get("size"), next((entry[key] for key in keys if entry.get(key)), None)
