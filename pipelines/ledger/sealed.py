"""A sealed file: Parquet whose footer holds the SHA-256 of the whole file, taken with zeros in the seal's own place.

So one pass over the bytes tells that they are the ones that were written, footer included, without any other record.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.pipelines.records import parsed

FOOTER_KEY = b"batchloom"
NO_SEAL = "0" * 64


class SealedWriter:
    """Writes a sealed file, a table after the other."""

    def __init__(self, schema: pa.Schema, compression: str = "zstd", statistics: bool = True) -> None:
        self._sink = io.BytesIO()
        self._writer = pq.ParquetWriter(
            self._sink, schema, compression=compression, write_statistics=statistics, write_page_checksum=True
        )

    def write(self, table: pa.Table) -> None:
        """Write a table as a row group, or several where it is large. How it is chunked changes no byte."""
        self._writer.write_table(table.combine_chunks())

    def seal(self, footer: Mapping[str, Any]) -> bytes:
        """Write the footer with `footer` in its metadata, and return the file."""
        self._writer.add_key_value_metadata({FOOTER_KEY: json.dumps({**footer, "seal": NO_SEAL}, sort_keys=True)})
        self._writer.close()
        with self._sink.getbuffer() as content:  # in place: a part may have hundreds of megabytes
            footer_bytes = int.from_bytes(content[-8:-4], "little")
            place = len(content) - 8 - footer_bytes + bytes(content[-8 - footer_bytes :]).rfind(NO_SEAL.encode())
            content[place : place + len(NO_SEAL)] = hashlib.sha256(content).hexdigest().encode()
        return self._sink.getvalue()


def sealed(table: pa.Table, footer: Mapping[str, Any]) -> bytes:
    """Return a table as a sealed file."""
    writer = SealedWriter(table.schema)
    writer.write(table)
    return writer.seal(footer)


@dataclass(frozen=True)
class Sealed:
    """A sealed file whose every byte was checked."""

    content: bytes
    metadata: pq.FileMetaData
    footer: Mapping[str, Any]
    sha256: str

    @staticmethod
    def of(content: bytes) -> "Sealed":
        """Check a file. Raises: ValueError where its bytes are not the ones that were written."""
        try:
            metadata = pq.read_metadata(pa.BufferReader(content))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"it is not readable as Parquet ({error})") from error
        footer = footer_of(metadata)
        seal = footer["seal"]
        place = max(content.rfind(seal.encode()), 0)
        digest = hashlib.sha256(memoryview(content)[:place])
        unsealed = digest.copy()  # both hashes in one pass: the seal is near the end
        digest.update(content[place:])
        unsealed.update(NO_SEAL.encode() + content[place + len(NO_SEAL) :])
        if unsealed.hexdigest() != seal:
            raise ValueError("its bytes are not the ones that were written: its seal is broken")
        return Sealed(content, metadata, footer, digest.hexdigest())

    def table(self, schema: pa.Schema) -> pa.Table:
        """Return its rows with these types. Raises: ValueError where its columns have other names or cannot have them.

        A file that was written with these types is read without pyarrow's datasets and functions, whose imports are a
        tenth of the time that a short command has.
        """
        table = pq.ParquetFile(pa.BufferReader(self.content), metadata=self.metadata).read()
        if table.schema.equals(schema):
            return pa.Table.from_arrays(table.columns, schema=schema)
        return table.cast(schema)


def footer_of(metadata: pq.FileMetaData) -> dict[str, Any]:
    """Return what was written into a file's footer, and the seal. Raises: ValueError where there is nothing of ours."""
    kept = metadata.metadata or {}
    if FOOTER_KEY not in kept:
        raise ValueError("its footer has no batchloom record")
    try:
        footer = parsed(kept[FOOTER_KEY])
    except ValueError as error:
        raise ValueError(f"its footer's record is no JSON ({error})") from error
    if not isinstance(footer, dict) or not isinstance(footer.get("seal"), str):
        raise ValueError("its footer's record has no seal")
    return footer
