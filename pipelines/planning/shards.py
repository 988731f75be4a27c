"""Find the shards of an input. It reads Parquet footers and never a row."""

import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from batchloom.models.patience import Patience
from batchloom.models.redaction import public_name
from batchloom.models.trouble import Trouble
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError, StoreError
from batchloom.pipelines.planning.footers import Columns, Footer, Footers
from batchloom.pipelines.planning.input_files import InputFile, find_files
from batchloom.pipelines.planning.kept_footers import KeptFooters

FOOTER_THREADS = 32  # a footer is a small request, bound by latency and not by bandwidth


@dataclass(frozen=True, slots=True)
class Shard:
    """One input file. Sequences are compact arrays, as a job may have 100,000 shards."""

    path: str
    """The path on its filesystem."""
    name: str
    """The path below the input root. It is part of every unit's id, so a moved dataset keeps its ids."""
    size: int
    """Bytes."""
    version: str
    """The etag or modification time, as the filesystem gives it."""
    row_groups: Sequence[int]
    """The number of rows of each row group."""
    read_bytes: Sequence[int] = ()
    """Of each row group, the bytes of the columns that the task reads, before compression; empty where nobody asked."""
    kept_bytes: Sequence[int] = ()
    """The same of the columns that are copied to the output."""
    footer_bytes: int | None = None
    """The length of the file's footer: who reads rows fetches it in one request. None where it is not known."""

    @property
    def num_rows(self) -> int:
        return sum(self.row_groups)


def find_shards(
    config: InputConfig,
    patience: Patience | None = None,
    columns: Columns | None = None,
    kept: KeptFooters | None = None,
) -> tuple[list[Shard], list[pa.Schema]]:
    """Return all shards in a fixed order, and the schema of each: one object for all that are equal.

    `columns` whose bytes are counted; `kept`: footers that an earlier plan has read.

    Raises:
        InputError: paths match nothing or cannot be listed, lie in several stores, or, naming up to 20, files are not
            readable as Parquet.
        StoreError: the store had trouble for longer than `patience` allows.
    """
    patience = patience or Patience()
    files = find_files(config, patience)
    footers = _footers(config, patience, files, columns, kept)
    root = _common_folder({file.folder for file in files})
    shards = [
        Shard(
            path=file.path,
            name=_name(file.path, root),
            size=file.size,
            version=file.version,
            row_groups=footer.row_groups,
            read_bytes=footer.read_bytes,
            kept_bytes=footer.kept_bytes,
            footer_bytes=footer.num_bytes,
        )
        for file, footer in zip(files, footers, strict=True)
    ]
    return shards, [footer.schema for footer in footers]


def keep_footers(
    kept: KeptFooters,
    config: InputConfig,
    patience: Patience,
    shards: Sequence[Shard],
    schemas: Sequence[pa.Schema],
) -> None:
    """Write what `find_shards` has found to the folder of the kept footers, so that the next plan need not read it."""
    kept.keep(
        config,
        patience,
        [
            (
                InputFile(path=shard.path, folder="", size=shard.size, version=shard.version),
                Footer(shard.row_groups, shard.read_bytes, shard.kept_bytes, shard.footer_bytes or 0, schema),
            )
            for shard, schema in zip(shards, schemas, strict=True)
        ],
    )


def _footers(
    config: InputConfig,
    patience: Patience,
    files: Sequence[InputFile],
    columns: Columns | None,
    kept: KeptFooters | None,
) -> list[Footer]:
    """Return each file's footer: the kept one, or that of the file. Raises: as `find_shards`."""
    found: list[Footer | Exception | None] = [None] * len(files) if kept is None else [*kept.take(files)]
    missing = [index for index, footer in enumerate(found) if footer is None]
    reader = Footers(config, patience, columns)
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        read = pool.map(lambda index: reader.read(files[index].path, files[index].size), missing)
        for index, footer in zip(missing, read, strict=True):
            found[index] = footer
    _refuse_unreadable([file.path for file in files], found)
    return [footer for footer in found if isinstance(footer, Footer)]


def _name(path: str, root: str) -> str:
    """Return the path below `root`; of a URL without the signature that it may end in."""
    name = posixpath.relpath(path, root)
    return public_name(name) if path.startswith(("http://", "https://")) else name


def _common_folder(folders: set[str]) -> str:
    return posixpath.commonpath(sorted(folders)) if folders else ""


def _refuse_unreadable(paths: Sequence[str], footers: Sequence[object]) -> None:
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
