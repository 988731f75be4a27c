"""Find the shards of an input. It reads Parquet footers and never a row."""

import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.models.patience import Patience
from batchloom.models.redaction import public_name
from batchloom.models.trouble import Trouble
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.connection import Connection, open_filesystem
from batchloom.pipelines.errors import InputError, NoInputError, StoreError
from batchloom.pipelines.listing import Listing, find, glob, glob_folder, is_glob
from batchloom.pipelines.patient_file import PatientFile
from batchloom.pipelines.storage import version_of

FOOTER_THREADS = 32  # a footer is one or two small requests, bound by latency and not by bandwidth


@dataclass(frozen=True)
class Shard:
    """One input file."""

    path: str
    """The path on its filesystem."""
    name: str
    """The path below the input root. It is part of every unit's id, so a moved dataset keeps its ids."""
    size: int
    """Bytes."""
    version: str
    """The etag or modification time, as the filesystem gives it."""
    row_groups: tuple[int, ...]
    """The number of rows of each row group."""

    @property
    def num_rows(self) -> int:
        return sum(self.row_groups)


def find_shards(config: InputConfig, patience: Patience | None = None) -> tuple[list[Shard], list[pa.Schema]]:
    """Return all shards in a fixed order, and the schema of each.

    Raises:
        InputError: paths match nothing or cannot be listed, lie in several stores, or, naming up to 20, files are not
            readable as Parquet.
        StoreError: the store had trouble for longer than `patience` allows.
    """
    patience = patience or Patience()
    _refuse_several_filesystems(config)
    files = list(_find_files(config, patience))
    root = _common_folder([folder for folder, _, _ in files])
    footers = Footers(config, patience)
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        read = list(pool.map(lambda file: footers.read(file[1]), files))
    _refuse_unreadable([path for _, path, _ in files], read)
    metadata = [footer for footer in read if not isinstance(footer, Exception)]
    shards = [
        Shard(
            path=path,
            name=_name(path, root),
            size=info["size"],
            version=version_of(info),
            row_groups=tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups)),
        )
        for (_, path, info), footer in zip(files, metadata, strict=True)
    ]
    return shards, [footer.schema.to_arrow_schema() for footer in metadata]


def _name(path: str, root: str) -> str:
    """Return the path below `root`; of a URL without the signature that it may end in."""
    name = posixpath.relpath(path, root)
    return public_name(name) if path.startswith(("http://", "https://")) else name


def _find_files(config: InputConfig, patience: Patience) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (folder that the pattern starts from, path, info) of each file, sorted, each file once."""
    seen: set[str] = set()
    unmatched: list[str] = []
    for pattern in config.paths:
        folder, files = _matching(config, pattern, patience)
        if not files:
            unmatched.append(pattern)
        for file in sorted(files):
            if file not in seen:
                seen.add(file)
                yield folder, file, files[file]
    if unmatched:
        raise NoInputError(
            "\n".join(f"Input path {pattern!r} matches no file." for pattern in unmatched)
            + " Check the spelling and the pattern; a folder is searched for files that end in .parquet."
        )


def _refuse_several_filesystems(config: InputConfig) -> None:
    opened = {path: open_filesystem(path, config.storage_options)[0] for path in config.paths}
    first, *others = opened
    for path in others:
        if opened[path] != opened[first]:
            raise InputError(
                f"input.paths: {first!r} and {path!r} lie in different stores, and a job reads from one. "
                "Run a job for each, with an output of its own."
            )


def _matching(config: InputConfig, pattern: str, patience: Patience) -> tuple[str, Listing]:
    """Return (folder that the pattern starts from, infos of the matching files by path)."""
    connection = Connection(pattern, config.storage_options, patience)
    try:
        doing = f"Listing input path {pattern!r}"
        return connection.call(doing, "list", lambda filesystem: _found(filesystem, connection.path.rstrip("/")))
    except StoreError as error:
        if error.trouble is Trouble.PASSING:
            raise
        raise InputError(str(error)) from error


def _found(filesystem: Any, path: str) -> tuple[str, Listing]:
    filesystem.invalidate_cache()
    try:
        if is_glob(path) and not filesystem.exists(path):  # a folder may be called "2024[1]"
            folder = glob_folder(path)
            found = _followed(filesystem, glob(filesystem, path))
            folders = [p for p, info in found.items() if info["type"] == "directory" and p.endswith(".parquet")]
            for dataset in folders:  # Spark writes folders that end in .parquet
                found |= _below(filesystem, dataset)
        elif filesystem.isdir(path) or (info := filesystem.info(path))["type"] == "directory":
            folder, found = path, _below(filesystem, path)
        else:
            folder, found = posixpath.dirname(path), {path: info}
    except FileNotFoundError:
        return "", {}
    return folder, {p: info for p, info in found.items() if info["type"] == "file"}


def _below(filesystem: Any, folder: str) -> Listing:
    """Return the Parquet files of a folder, recursively, without hidden ones."""
    found = find(filesystem, folder)
    return _followed(
        filesystem, {p: i for p, i in found.items() if p.endswith(".parquet") and not _is_hidden(p, folder)}
    )


def _followed(filesystem: Any, found: Listing) -> Listing:
    """Replace symbolic links by their targets' infos: a listing describes the link, and a hub's cache is all links.

    A broken link counts as a file, so that it is reported with those that cannot be read.
    """

    def behind(path: str) -> dict[str, Any]:
        info: dict[str, Any] = filesystem.info(path) if filesystem.exists(path) else {"type": "file", "size": 0}
        return info

    return {path: behind(path) if info["type"] == "other" else info for path, info in found.items()}


def _is_hidden(path: str, root: str) -> bool:
    return any(part.startswith(("_", ".")) for part in path.removeprefix(root).split("/"))


def _common_folder(folders: Sequence[str]) -> str:
    return posixpath.commonpath(sorted(set(folders))) if folders else ""


class Footers:
    """Reads the footers of a job's shards; what the first has shown to be permitted is known for the others."""

    def __init__(self, config: InputConfig, patience: Patience) -> None:
        self._url, self._options, self._patience = config.paths[0], config.storage_options, patience
        self._known: set[str] = set()

    def read(self, path: str) -> pq.FileMetaData | Exception:
        """Return the footer, or what is wrong. Bytes that arrived and do not decode are read a second time."""
        try:
            return self._read(path, is_fresh=False)
        except StoreError as error:
            return error
        except (OSError, pa.ArrowException):
            try:
                return self._read(path, is_fresh=True)
            except (OSError, pa.ArrowException, StoreError) as error:
                return error

    def _read(self, path: str, is_fresh: bool) -> pq.FileMetaData:
        connection = Connection(self._url, self._options, self._patience, self._known, is_fresh)
        with PatientFile(connection, path) as file:
            try:
                return pq.read_metadata(file)
            except Exception:
                if file.failure is not None:
                    raise file.failure from None
                raise


def _refuse_unreadable(paths: Sequence[str], footers: Sequence[pq.FileMetaData | Exception]) -> None:
    """Raises: StoreError where a store had trouble with a footer, else InputError where a file is damaged."""
    failed = [(path, error) for path, error in zip(paths, footers, strict=True) if isinstance(error, Exception)]
    if not failed:
        return
    troubled = [error for _, error in failed if isinstance(error, StoreError) and error.trouble is not Trouble.LASTING]
    if troubled:
        more = f"\nSo did {len(troubled) - 1} others of {len(paths)} input files." if len(troubled) > 1 else ""
        raise StoreError(f"{troubled[0]}{more}", troubled[0].trouble)
    lines = [f"  {path}: {type(error).__name__}: {error}" for path, error in failed[:20]]
    raise InputError(
        f"{len(failed)} of {len(paths)} input files cannot be read as Parquet:\n"
        + "\n".join(lines)
        + "\nRepair or remove them, or narrow input.paths."
    )
