"""A model's URI to its files: a local folder, any fsspec URL, hf://org/name@revision. It knows no tensor.

    /models/bart-large-cnn, file:///models/...   used where it lies
    s3://bucket/bart, memory://bart, ...         small files are cached once per node, weights are streamed from there
    hf://facebook/bart-large-cnn@main            everything is cached once per node (hubs limit requests)

A cached folder is named by the URI and the listing of what lies there (sizes, etags): a changed model is fetched anew.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem

from models.errors import CheckpointError

logger = logging.getLogger(__name__)

# Formats that are not ours, and none of our small files.
_FOREIGN_SUFFIXES = {".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".ckpt", ".gguf", ".tflite"}
_WEIGHT_SUFFIXES = {".safetensors", ".bin"}


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are: small ones always in `folder`, weights under `root` of `filesystem`."""

    uri: str
    folder: Path
    filesystem: fsspec.AbstractFileSystem
    root: str
    file_names: tuple[str, ...]

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    def weight_path(self, name: str) -> str:
        """A weight file's path on `filesystem`."""
        return f"{self.root.rstrip('/')}/{name}"

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The parsed file, or None where there is none. Raises CheckpointError where it is no JSON object."""
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
    """A local folder with the model's small files: configuration and tokenizer."""
    return open_source(uri).folder


def open_source(uri: str) -> ModelSource:
    """Finds a model's files, fetching what is not local. Raises CheckpointError where there is no such folder."""
    filesystem, root = _filesystem_of(uri)
    listing = _list(filesystem, root, uri)
    names = tuple(sorted(listing))
    if isinstance(filesystem, LocalFileSystem):
        return ModelSource(uri, Path(root), filesystem, root, names)
    everything = uri.startswith("hf://")
    wanted = [name for name in names if _is_ours(name) and (everything or not _is_weight(name))]
    if everything:
        wanted = _one_weight_format(wanted)
    folder = _fetch_once(filesystem, root, wanted, _cache_folder(uri, listing, wanted))
    if everything:
        return ModelSource(uri, folder, LocalFileSystem(), str(folder), tuple(wanted))
    return ModelSource(uri, folder, filesystem, root, names)


def _filesystem_of(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        filesystem, root = fsspec.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        hint = "pip install 'batchloom[hub]'" if uri.startswith("hf://") else "install the package for this scheme"
        raise CheckpointError(f"Cannot open model {uri!r}: {error}. Perhaps: {hint}.") from error
    return filesystem, root


def _list(filesystem: fsspec.AbstractFileSystem, root: str, uri: str) -> dict[str, dict[str, Any]]:
    """Files directly in the folder, by name."""
    try:
        entries = filesystem.ls(root, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        entries = []
    files = {PurePosixPath(entry["name"]).name: entry for entry in entries if entry["type"] == "file"}
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


def _one_weight_format(names: list[str]) -> list[str]:
    """Safetensors where the hub has them, .bin files otherwise: never both, they hold the same."""
    if any(name.endswith(".safetensors") for name in names):
        return [name for name in names if not name.endswith((".bin", ".bin.index.json"))]
    return names


def _cache_folder(uri: str, listing: dict[str, dict[str, Any]], wanted: Iterable[str]) -> Path:
    marks = [(name, listing[name].get("size"), _version(listing[name])) for name in sorted(wanted)]
    digest = hashlib.sha256(json.dumps([uri, marks], default=str).encode()).hexdigest()[:24]
    home = os.environ.get("BATCHLOOM_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "batchloom")
    return Path(home) / "models" / digest


def _version(entry: dict[str, Any]) -> Any:
    """What changes when a file's content does: the first of these that its store knows."""
    keys = ("ETag", "etag", "blob_id", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "created")
    return next((entry[key] for key in keys if entry.get(key)), None)


def _fetch_once(filesystem: fsspec.AbstractFileSystem, root: str, names: list[str], folder: Path) -> Path:
    """Copies files into `folder`; processes of one node wait for the first, and a broken copy is never seen."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        logger.info("fetching %d files of %s into %s", len(names), root, folder)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            for name in names:
                filesystem.get_file(f"{root.rstrip('/')}/{name}", str(partial / name))
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder
