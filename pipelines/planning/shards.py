"""Find the shards of an input. It reads Parquet footers and never a row."""

import posixpath
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import pyarrow as pa

from batchloom.models.patience import Patience
from batchloom.models.redaction import public_name
from batchloom.models.trouble import Trouble
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError, StoreError
from batchloom.pipelines.planning.footers import Columns, Footer, Footers, compact
from batchloom.pipelines.planning.input_files import InputFile, find_files
from batchloom.pipelines.planning.kept_footers import KeptFooters
from batchloom.pipelines.planning.source import Source

FOOTER_THREADS = 32  # a footer is a small request, bound by latency and not by bandwidth


@dataclass(frozen=True)
class Shard:
    """One input file and its row groups. Sequences are compact arrays, as a job may have 100,000 shards."""

    source: Source
    row_groups: Sequence[int]
    """The number of rows of each row group."""
    read_bytes: Sequence[int] = ()
    """Of each row group, the bytes of the columns that the task reads, before compression; empty where nobody asked."""
    kept_bytes: Sequence[int] = ()
    """The same of the columns that are copied to the output."""

    @property
    def name(self) -> str:
        return self.source.name

    @cached_property
    def num_rows(self) -> int:
        return sum(self.row_groups)

    @cached_property
    def num_bytes(self) -> int:
        """Of the columns that are read and of those that are kept."""
        return sum(self.read_bytes) + sum(self.kept_bytes)

    def pieces(self, start: int, stop: int, with_kept: bool = False) -> Iterator[tuple[int, int]]:
        """Yield (rows, bytes) of what each row group has of the rows `[start, stop)`, in columns that the task reads;
        `with_kept`: and in those that are kept."""
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self.row_groups) and self._starts[index] < stop:
            rows = min(stop, self._starts[index + 1]) - max(start, self._starts[index])
            if rows > 0:
                num_bytes = self.read_bytes[index] if self.read_bytes else 0
                num_bytes += self.kept_bytes[index] if with_kept and self.kept_bytes else 0
                yield rows, num_bytes * rows // self.row_groups[index]
            index += 1

    def is_boundary(self, row: int) -> bool:
        """Return whether a row group starts there."""
        return self._starts[bisect_right(self._starts, row) - 1] == row

    @cached_property
    def _starts(self) -> Sequence[int]:
        """The row at which each row group starts, and the number of rows."""
        return compact([0, *accumulate(self.row_groups)])


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
            source=Source(_name(file.path, root), file.path, file.size, file.version, footer.num_bytes),
            row_groups=footer.row_groups,
            read_bytes=footer.read_bytes,
            kept_bytes=footer.kept_bytes,
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
                InputFile(path=source.path, folder="", size=source.size, version=source.version),
                Footer(shard.row_groups, shard.read_bytes, shard.kept_bytes, source.footer_bytes or 0, schema),
            )
            for source, shard, schema in zip((shard.source for shard in shards), shards, schemas, strict=True)
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
