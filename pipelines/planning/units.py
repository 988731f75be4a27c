"""Find shards and cut them into units. It reads Parquet footers and never a row."""

import hashlib
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.models.patience import Patience
from batchloom.models.redaction import public_name
from batchloom.models.trouble import Trouble
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.connection import Connection, open_filesystem
from batchloom.pipelines.errors import InputError, JobError, NoInputError, StoreError
from batchloom.pipelines.listing import Listing, find, glob, glob_folder, is_glob
from batchloom.pipelines.patient_file import PatientFile
from batchloom.pipelines.storage import VERSION_KEYS, version_of

FOOTER_THREADS = 32  # a footer is one or two small requests, bound by latency and not by bandwidth
STEM_BYTES = 180  # of the shard's name in a part's name: filesystems allow 255 bytes, and a character may have four


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


@dataclass(frozen=True)
class Unit:
    """The rows `[start, stop)` of one shard: the unit of work that is done or not done."""

    shard: str
    path: str
    start: int
    stop: int
    id: str

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def stem(self) -> str:
        """A readable name: the shard's file name without extension, and the rows."""
        name = posixpath.basename(self.shard).removesuffix(".parquet")
        safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in name).lstrip("._") or "shard"
        short = safe[:80].encode()[:STEM_BYTES].decode(errors="ignore")
        return f"{short}-{self.start:09d}-{self.stop:09d}"

    def part_name(self, fingerprint: str) -> str:
        """Return the name of the unit's part, a function of the unit and the fingerprint: if it exists, it is done."""
        return f"part-{self.stem}-{self.id[:12]}-{fingerprint[:8]}.parquet"

    def check_unchanged(self, info: Mapping[str, Any]) -> None:
        """Compare a filesystem's info of the shard with the one that the unit was planned with, which its id holds.

        Raises: JobError where no way to write `info` gives the unit's id.
        """
        versions = list(_written(info))
        pairs = [(size, version) for size in (info["size"], None) for version in versions]
        if all(_unit_id(self.shard, *pair, self.start, self.stop) != self.id for pair in pairs):
            raise JobError(
                f"{self.shard} has changed since the job was planned: it has {info['size']} bytes and is of version "
                f"{versions[0] or 'unknown'} now. Put it back and run the job again, or choose another output.path."
            )

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Unit":
        return Unit(**json.loads(text))


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


def cut(shard: Shard, rows_per_unit: int) -> Iterator[Unit]:
    """Yield units of at most `rows_per_unit` rows: several whole row groups, or a slice of one larger row group.

    Row groups of 3, 3, 3 and 20 rows at 8 rows per unit: [0,6) [6,9) [9,16) [16,23) [23,29).
    """
    for start, stop in _joined(shard.row_groups, rows_per_unit):
        num_slices = -(-(stop - start) // rows_per_unit)
        bounds = [start + (stop - start) * i // num_slices for i in range(num_slices + 1)]
        for low, high in pairwise(bounds):
            yield Unit(shard=shard.name, path=shard.path, start=low, stop=high, id=_id_of(shard, low, high))


def _joined(row_groups: Iterable[int], rows_per_unit: int) -> Iterator[tuple[int, int]]:
    start = stop = 0
    for num_rows in row_groups:
        if stop > start and stop + num_rows - start > rows_per_unit:
            yield start, stop
            start = stop
        stop += num_rows
    if stop > start:
        yield start, stop


def _id_of(shard: Shard, start: int, stop: int) -> str:
    return _unit_id(shard.name, shard.size, shard.version, start, stop)


def _unit_id(shard: str, size: int | None, version: str, start: int, stop: int) -> str:
    identity = [shard, size, version, start, stop]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]


def _written(info: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a listing may have given as the version of a file that has this info now, most exact first.

    A question about one file may be answered with more than a listing, or in other words: Azure quotes etags in it.
    """
    for key in VERSION_KEYS:
        if (value := info.get(key)) is not None:
            yield from (str(value), str(value).strip('"'), f'"{value}"')
            if isinstance(value, datetime):
                yield str(value.timestamp())
    yield ""


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
