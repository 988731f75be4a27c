"""A part as a file, Parquet or JSON Lines: how rows become its bytes, and where the account is that a seal covers.

Parquet has room for the account in its footer. A file of JSON Lines has none: its account is a sealed file without rows
in `_batchloom/seals`, written before the part and named by a hash of the part's name and bytes. So a part that is
replaced (rows with errors are computed again) or moved (to a folder) has a seal at any moment.
"""

import gzip
import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from batchloom.pipelines.columns.as_json import json_lines
from batchloom.pipelines.config import OutputConfig
from batchloom.pipelines.formats.contents import compression_of
from batchloom.pipelines.ledger.parts import Footer, ending_of, footer_of_seal, key_of, read_footer, read_part
from batchloom.pipelines.ledger.sealed import Sealed, SealedWriter, sealed
from batchloom.pipelines.stores.storage import Store

SEALS = "_batchloom/seals"
GZIP_LEVEL = 4  # six times as fast as 6, and files are 1 % larger
PARSED_BYTES = 1 << 24  # of JSON, at once
TABLE_ROWS = 1 << 13  # of a Parquet file, at once


def seal_name(part: str, sha256: str) -> str:
    """Return the name of the file that seals a part of JSON Lines of this name and with these bytes."""
    return f"{SEALS}/{key_of(part)}/{hashlib.sha256(f'{part} {sha256}'.encode()).hexdigest()[:16]}.pq"


@dataclass(frozen=True)
class Written:
    """A part's file as it was written."""

    bytes: int
    sha256: str
    version: str


class PartWriter(ABC):
    """Writes a part, a table after the other."""

    @staticmethod
    def of(output: OutputConfig, schema: pa.Schema) -> "PartWriter":
        """Return what writes parts as the output asks for."""
        if output.format == "parquet":
            return _ParquetWriter(SealedWriter(schema, output.codec, output.statistics))
        return _JsonLinesWriter(output.codec)

    @abstractmethod
    def write(self, table: pa.Table) -> None:
        """Add rows."""

    @abstractmethod
    def put(self, store: Store, name: str, account: Mapping[str, Any]) -> Written:
        """Put the part into a store, with its account. Raises: StoreError."""


@dataclass(frozen=True)
class _ParquetWriter(PartWriter):
    writer: SealedWriter

    def write(self, table: pa.Table) -> None:
        self.writer.write(table)

    def put(self, store: Store, name: str, account: Mapping[str, Any]) -> Written:
        content = self.writer.seal(account)
        stored = store.put(name, content)
        return Written(len(content), hashlib.sha256(content).hexdigest(), stored.version)


class _JsonLinesWriter(PartWriter):
    def __init__(self, compression: str) -> None:
        self._sink: Any = io.BytesIO() if compression == "gzip" else pa.BufferOutputStream()
        self._stream = self._sink
        if compression == "gzip":  # without a name and a time: equal rows are equal bytes
            self._stream = gzip.GzipFile("", "wb", GZIP_LEVEL, self._sink, mtime=0)
        elif compression != "none":
            self._stream = pa.CompressedOutputStream(self._sink, compression)

    def write(self, table: pa.Table) -> None:
        self._stream.write(json_lines(table))

    def put(self, store: Store, name: str, account: Mapping[str, Any]) -> Written:
        if self._stream is not self._sink:
            self._stream.close()
        content = bytes(self._sink.getvalue())
        sha256 = hashlib.sha256(content).hexdigest()
        own = {"bytes": len(content), "sha256": sha256, "ending": ending_of(name)}
        store.put(seal_name(name, sha256), sealed(pa.table({}), {**account, **own}))
        stored = store.put(name, content)
        return Written(len(content), sha256, stored.version)


@dataclass(frozen=True)
class Whole(ABC):
    """A part whose every byte was checked."""

    footer: Footer

    @abstractmethod
    def table(self, schema: pa.Schema) -> pa.Table:
        """Return its rows in some of its columns. Raises: ValueError where a Parquet file does not have them."""


@dataclass(frozen=True)
class PartFile(ABC):
    """A part in a store, by its name."""

    store: Store
    name: str

    @staticmethod
    def of(store: Store, name: str) -> "PartFile":
        return _ParquetFile(store, name) if name.endswith(".parquet") else _JsonLinesFile(store, name)

    @abstractmethod
    def whole(self) -> Whole:
        """Read all of it. Raises: FileNotFoundError; ValueError where its bytes are not the ones that were written;
        StoreError."""

    @abstractmethod
    def footer(self, size: int) -> Footer:
        """Return its account. `size`: bytes of the file. Raises: as `whole`."""

    @abstractmethod
    def columns(self, schema: pa.Schema) -> pa.Table:
        """Return its rows in some of its columns. Raises: as `whole`."""

    @abstractmethod
    def first_rows(self, num_rows: int) -> pa.Table:
        """Return its first rows. Raises: as `whole`."""

    @abstractmethod
    def tables(self, schema: pa.Schema | None = None) -> Iterator[pa.Table]:
        """Yield its rows, some thousands at a time, in some of its columns or all; of a Parquet file as they are there.

        Raises: as `whole`; ValueError where it has no such column.
        """


class _ParquetFile(PartFile):
    def whole(self) -> Whole:
        content = self.store.read(self.name)
        return _WholeParquet(read_part(self.name, content), content)

    def footer(self, size: int) -> Footer:
        with self.store.open(self.name) as file:
            return read_footer(self.name, size, pq.ParquetFile(file).metadata)

    def columns(self, schema: pa.Schema) -> pa.Table:
        with self.store.open(self.name) as file:
            opened = pq.ParquetFile(file, page_checksum_verification=True)
            return opened.read(columns=schema.names).select(schema.names).cast(schema)

    def first_rows(self, num_rows: int) -> pa.Table:
        with self.store.open(self.name) as file:
            opened = pq.ParquetFile(file, page_checksum_verification=True)
            batch = next(opened.iter_batches(batch_size=num_rows), None)
            return opened.schema_arrow.empty_table() if batch is None else pa.Table.from_batches([batch])

    def tables(self, schema: pa.Schema | None = None) -> Iterator[pa.Table]:
        with self.store.open(self.name) as file:
            opened = pq.ParquetFile(file, page_checksum_verification=True)
            names = opened.schema_arrow.names if schema is None else schema.names
            if missing := set(names) - set(opened.schema_arrow.names):
                raise ValueError(f"it has no column {', '.join(sorted(missing))}")
            for batch in opened.iter_batches(TABLE_ROWS, columns=names):
                yield pa.Table.from_batches([batch]).select(names)


@dataclass(frozen=True)
class _WholeParquet(Whole):
    content: bytes

    def table(self, schema: pa.Schema) -> pa.Table:
        try:
            return pq.read_table(pa.BufferReader(self.content), columns=schema.names).select(schema.names).cast(schema)
        except KeyError as error:
            raise ValueError(f"it has no column {error}") from error


class _JsonLinesFile(PartFile):
    def whole(self) -> "_WholeJsonLines":
        content = self.store.read(self.name)
        sha256 = hashlib.sha256(content).hexdigest()
        seal = seal_name(self.name, sha256)
        try:
            account = Sealed.of(self.store.read(seal)).footer
        except FileNotFoundError as error:
            raise ValueError(f"its bytes are not the ones that were written: there is no {seal}") from error
        except ValueError as error:
            raise ValueError(f"{seal}: {error}") from error
        if (account.get("bytes"), account.get("sha256")) != (len(content), sha256):
            raise ValueError(f"{seal} is the seal of other bytes")
        num_rows = sum(block.count(b"\n") for block in _blocks(self.name, content))
        footer = footer_of_seal(self.name, len(content), sha256, account, num_rows)
        return _WholeJsonLines(footer, content)

    def footer(self, size: int) -> Footer:  # noqa: ARG002
        return self.whole().footer

    def columns(self, schema: pa.Schema) -> pa.Table:
        return self.whole().table(schema)

    def first_rows(self, num_rows: int) -> pa.Table:
        lines = (line for block in self.whole().blocks() for line in block.splitlines())
        return _told(islice(lines, num_rows))

    def tables(self, schema: pa.Schema | None = None) -> Iterator[pa.Table]:
        for block in self.whole().blocks():
            yield _told(block.splitlines()) if schema is None else _parsed(block, schema)


@dataclass(frozen=True)
class _WholeJsonLines(Whole):
    content: bytes

    def table(self, schema: pa.Schema) -> pa.Table:
        return pa.concat_tables([schema.empty_table(), *(_parsed(block, schema) for block in self.blocks())])

    def blocks(self) -> Iterator[bytes]:
        """Yield the lines, many at a time."""
        return _blocks(self.footer.record.part, self.content)


def _blocks(name: str, content: bytes) -> Iterator[bytes]:
    stream, compression = pa.BufferReader(content), compression_of(name)
    if compression is not None:
        stream = pa.CompressedInputStream(stream, compression)
    rest = b""
    while piece := stream.read(PARSED_BYTES):
        lines, newline, tail = piece.rpartition(b"\n")
        if newline:
            yield rest + lines + newline
            rest = tail
        else:
            rest += piece
    if rest:
        yield rest


def _told(lines: Iterable[bytes]) -> pa.Table:
    """Return the rows of some lines in all of their columns, with the types that the values tell."""
    rows = [json.loads(line) for line in lines]
    return pa.table({name: _typed([row[name] for row in rows]) for name in rows[0]} if rows else {})


def _typed(values: list[Any]) -> pa.Array:
    """Return values of JSON with the type that they tell, which is not always the one that they were written from."""
    try:
        return pa.array(values)
    except OverflowError:  # of uint64
        try:
            return pa.array(values, pa.uint64())
        except (TypeError, OverflowError, pa.ArrowException):  # inside of lists and objects
            return pa.array([None if value is None else json.dumps(value, ensure_ascii=False) for value in values])


def _parsed(lines: bytes, schema: pa.Schema) -> pa.Table:
    reading = pj.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    read_as = pa.schema([field.with_type(_readable(field.type)) for field in schema])
    parsing = pj.ParseOptions(explicit_schema=read_as, unexpected_field_behavior="ignore")
    return pj.read_json(pa.BufferReader(lines), reading, parsing).select(schema.names).cast(schema)


def _readable(kind: pa.DataType) -> pa.DataType:
    """Return a type as Arrow's reader of JSON takes it, which knows no float16."""
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_list(kind):
        return pa.list_(_readable(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_readable(field.type)) for field in kind])
    return kind
