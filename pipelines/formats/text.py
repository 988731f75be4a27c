"""Plain text: a line is a row, or a file is. The column is called `text`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from batchloom.pipelines.formats.base import Columns, Footer, Format, RowGroupError, compact
from batchloom.pipelines.formats.contents import Contents
from batchloom.pipelines.formats.records import RecordFormat
from batchloom.pipelines.planning.spans import Range
from batchloom.pipelines.stores.patient_file import Positioned

if TYPE_CHECKING:
    from batchloom.pipelines.planning.source import Source

COLUMN = "text"
PIECE_BYTES = 1 << 23


@dataclass(frozen=True)
class Lines(RecordFormat):
    """A line is a row."""

    name: ClassVar[str] = "text"
    title: ClassVar[str] = "UTF-8 text"
    endings: ClassVar[tuple[str, ...]] = (".txt", ".text")

    def header(self, first: bytes) -> tuple[tuple[str, ...], bool]:  # noqa: ARG002
        return (COLUMN,), False

    def guess(self, records: Sequence[bytes], names: Sequence[str]) -> pa.Table:
        return self.parse(records, names, _SCHEMA)

    def parse(self, records: Sequence[bytes], names: Sequence[str], schema: pa.Schema) -> pa.Table:  # noqa: ARG002
        lines = pa.array([record.rstrip(b"\r\n").decode() for record in records])
        return _with_columns(lines, schema)


@dataclass(frozen=True)
class Documents(Format):
    """A file is a row."""

    name: ClassVar[str] = "documents"
    title: ClassVar[str] = "UTF-8 text"
    endings: ClassVar[tuple[str, ...]] = (".txt", ".text")

    def describe(self, file: Positioned, path: str, columns: Columns | None, footer_bytes: int) -> Footer:  # noqa: ARG002
        read_bytes, kept_bytes = ([], []) if columns is None else ([file.size], [0])
        return Footer(compact([1]), compact(read_bytes), compact(kept_bytes), 0, _SCHEMA)

    def read(
        self, file: Positioned, source: "Source", schema: pa.Schema, ranges: Sequence[Range]
    ) -> Iterator[pa.Table]:
        assert list(ranges) == [(0, 1)]
        contents, pieces = Contents(file, source.path), list[bytes]()
        try:
            while piece := contents.read(sum(map(len, pieces)), PIECE_BYTES):
                pieces.append(piece)
            text = b"".join(pieces).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise RowGroupError({ranges[0]: str(error)}) from error
        yield _with_columns(pa.array([text]), schema)


_SCHEMA = pa.schema([(COLUMN, pa.string())])


def _with_columns(texts: pa.Array, schema: pa.Schema) -> pa.Table:
    columns = [texts if field.name == COLUMN else pa.nulls(len(texts), field.type) for field in schema]
    return pa.table(columns, schema)
