"""Find the shards of an input. It reads footers of Parquet files, and goes once through files without one."""

import logging
import posixpath
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from batchloom.models.patience import Patience
from batchloom.models.redaction import public_name
from batchloom.models.trouble import Trouble
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError, StoreError
from batchloom.pipelines.formats.base import Columns, Footer, Format, compact
from batchloom.pipelines.formats.contents import compression_of
from batchloom.pipelines.formats.parquet import Parquet
from batchloom.pipelines.formats.table import format_named
from batchloom.pipelines.planning.footers import Footers
from batchloom.pipelines.planning.input_files import InputFile, find_files, words_for_skipped
from batchloom.pipelines.planning.kept_footers import KeptFooters, Known
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.planning.spans import Range, Span
from batchloom.pipelines.stores.connection import open_filesystem
from batchloom.pipelines.tables.choice import Pinned
from batchloom.pipelines.tables.deleted import Deleted

log = logging.getLogger(__name__)

FOOTER_THREADS = 32  # a footer is a small request, bound by latency and not by bandwidth

TOLD_BYTES = 1 << 30  # of files that are gone through: it takes so long that a word is due


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
    offsets: Sequence[int] = ()
    """Footer.offsets of its file."""
    format: Format = Parquet()  # noqa: RUF009

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

    def source_of(self, start: int, stop: int) -> Source:
        """Return the source, with what is needed to read the rows `[start, stop)`."""
        if self.source.deleted is not None:
            return replace(self.source, deleted=self.source.deleted.within(start, stop))
        if not self.offsets:
            return self.source
        first = max(0, bisect_right(self._starts, start) - 1)
        last = bisect_left(self._starts, stop, lo=first)
        places = zip(self._starts[first : last + 1], self.offsets[first : last + 1], strict=True)
        return replace(self.source, places=tuple(places))

    def is_boundary(self, row: int) -> bool:
        """Return whether reading can start there: a row group does, and nothing before it has to be decompressed."""
        if row and self.offsets and compression_of(self.source.path):
            return False
        return self._starts[bisect_right(self._starts, row) - 1] == row

    @cached_property
    def _starts(self) -> Sequence[int]:
        """The row at which each row group starts, and the number of rows."""
        return compact([0, *accumulate(self.row_groups)])


def sources_of(spans: Iterable[Span], shards: Mapping[str, Shard]) -> dict[str, Source]:
    """Return the sources of spans by name, each with what is needed to read these rows."""
    ranges = dict[str, Range]()
    for span in spans:
        start, stop = ranges.get(span.shard, (span.start, span.stop))
        ranges[span.shard] = min(start, span.start), max(stop, span.stop)
    return {name: shards[name].source_of(*rows) for name, rows in ranges.items()}


def find_shards(
    config: InputConfig,
    patience: Patience | None = None,
    columns: Columns | None = None,
    kept: KeptFooters | None = None,
    pinned: Pinned = lambda: None,
) -> tuple[list[Shard], list[pa.Schema]]:
    """Return all shards in a fixed order, and the schema of each: one object for all that are equal.

    `columns` whose bytes are counted; `kept`: footers that an earlier plan has read; `pinned`: as `find_files`.

    Raises:
        InputError: paths match nothing or cannot be listed, lie in several stores or hold several formats, or, naming
            up to 20, files are not readable as what they are.
        StoreError: the store had trouble for longer than `patience` allows.
    """
    patience = patience or Patience()
    found = find_files(config, patience, pinned)
    files, format = found.files, found.table or format_named(found.format, config.csv)
    for words in filter(None, (words_for_skipped(found.skipped), format.news)):
        log.warning("%s", words)
    versions, footers = _planned(config, patience, format, files, columns, kept)
    root = _common_folder({file.folder for file in files})
    names = {id(footer.schema): tuple(footer.schema.names) for footer in footers if format.values_are_texts}
    shards = [
        _shard(format, _source(file, version, footer, root, names.get(id(footer.schema), ())), footer)
        for file, version, footer in zip(files, versions, footers, strict=True)
    ]
    return shards, [footer.schema for footer in footers]


def _source(file: InputFile, version: str, footer: Footer, root: str, columns: tuple[str, ...]) -> Source:
    source = Source(
        name=_name(file.path, root),
        path=file.path,
        size=file.size,
        version=version,
        touched=file.version if version != file.version else "",
        footer_bytes=footer.num_bytes or None,
        columns=columns,
    )
    if file.live is None:
        return source
    partitions = tuple(file.live.partitions.items())
    if not file.live.deleted:
        return replace(source, partitions=partitions)
    deleted = Deleted(compact(file.live.deleted))
    return replace(source, partitions=partitions, deleted=deleted, deletes=deleted.digest)


def _shard(format: Format, source: Source, footer: Footer) -> Shard:
    counts, deleted = footer.row_groups, source.deleted
    return Shard(
        source=source,
        row_groups=counts if deleted is None else compact(deleted.live_counts(counts)),
        read_bytes=footer.read_bytes,
        kept_bytes=footer.kept_bytes,
        offsets=footer.offsets,
        format=format,
    )


def keep_footers(
    kept: KeptFooters,
    config: InputConfig,
    patience: Patience,
    shards: Sequence[Shard],
    schemas: Sequence[pa.Schema],
) -> None:
    """Write what `find_shards` has found to the folder of the kept footers, so that the next plan need not read it."""

    def known(shard: Shard, schema: pa.Schema) -> tuple[InputFile, Footer, str]:
        source = shard.source
        num_bytes = source.footer_bytes or 0
        footer = Footer(shard.row_groups, shard.read_bytes, shard.kept_bytes, num_bytes, schema, shard.offsets)
        return InputFile(source.path, "", source.size, source.listed_version), footer, source.version

    kept.keep(
        config,
        patience,
        shards[0].format.settings(),
        # Where rows are deleted, the shard has other counts than the file.
        [known(shard, schema) for shard, schema in zip(shards, schemas, strict=True) if shard.source.deleted is None],
        _are_local(config),
    )


def _are_local(config: InputConfig) -> bool:
    filesystem, _ = open_filesystem(config.paths[0], config.storage_options)
    return isinstance(filesystem, LocalFileSystem)


def _planned(
    config: InputConfig,
    patience: Patience,
    format: Format,
    files: Sequence[InputFile],
    columns: Columns | None,
    kept: KeptFooters | None,
) -> tuple[list[str], list[Footer]]:
    """Return the version that each file is known by, and its footer: what is kept, or what the file is now.

    Raises: as `find_shards`.
    """
    known: list[Known | None] = [None] * len(files)
    if kept is not None:
        known = kept.take(files, format.settings(), _are_local(config))
    versions = [file.version if one is None else one.version for file, one in zip(files, known, strict=True)]
    found: list[Footer | Exception | None] = [None if one is None else one.footer for one in known]
    missing = [index for index, one in enumerate(found) if one is None]
    num_bytes = 0 if format.has_own_types else sum(files[index].size or 0 for index in missing)
    if num_bytes > TOLD_BYTES:
        log.warning("Going through %d files of %.1f GB once, to count their rows.", len(missing), num_bytes / 1e9)
    reader = Footers(config, patience, format, columns)
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        read = pool.map(lambda index: reader.read(files[index].path, files[index].size), missing)
        for index, footer in zip(missing, read, strict=True):
            found[index] = footer
    _refuse_unreadable(format, [file.path for file in files], found)
    return versions, [footer for footer in found if isinstance(footer, Footer)]


def _name(path: str, root: str) -> str:
    """Return the path below `root`; of a URL without the signature that it may end in."""
    name = posixpath.relpath(path, root)
    return public_name(name) if path.startswith(("http://", "https://")) else name


def _common_folder(folders: set[str]) -> str:
    return posixpath.commonpath(sorted(folders)) if folders else ""


def _refuse_unreadable(format: Format, paths: Sequence[str], footers: Sequence[object]) -> None:
    """Raises: StoreError where a store had trouble with a footer, else InputError where a file is damaged."""
    failed = [(path, error) for path, error in zip(paths, footers, strict=True) if isinstance(error, Exception)]
    if not failed:
        return
    troubled = [error for _, error in failed if isinstance(error, StoreError) and error.trouble is not Trouble.LASTING]
    if troubled:
        more = f"\nSo did {len(troubled) - 1} others of {len(paths)} input files." if len(troubled) > 1 else ""
        raise StoreError(f"{troubled[0]}{more}", troubled[0].trouble)
    lines = "\n".join(f"  {path}: {type(error).__name__}: {error}" for path, error in failed[:20])
    if any(isinstance(error, StoreError) for _, error in failed):  # what was listed is gone, or not for this user
        raise InputError(
            f"{len(failed)} of {len(paths)} input files cannot be read:\n{lines}\n"
            "See that they exist, may be read and are not removed meanwhile, or narrow input.paths."
        )
    raise InputError(
        f"{len(failed)} of {len(paths)} input files cannot be read as {format.title}:\n{lines}\n"
        "Repair or remove them, narrow input.paths, or set input.format where they are of another format."
    )
