"""Parquet: row groups, types and sizes by the file's own footer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from batchloom.pipelines.formats.base import Columns, Footer, Format, compact
from batchloom.pipelines.formats.decode import decoded
from batchloom.pipelines.formats.footer import column_bytes, read_footer
from batchloom.pipelines.planning.spans import Range
from batchloom.pipelines.stores.patient_file import Positioned

if TYPE_CHECKING:
    from batchloom.pipelines.planning.source import Source


@dataclass(frozen=True)
class Parquet(Format):
    """Apache Parquet."""

    name: ClassVar[str] = "parquet"
    title: ClassVar[str] = "Parquet"
    endings: ClassVar[tuple[str, ...]] = (".parquet",)
    has_own_types: ClassVar[bool] = True

    def describe(self, file: Positioned, path: str, columns: Columns | None, footer_bytes: int) -> Footer:  # noqa: ARG002
        metadata, num_bytes = read_footer(file, footer_bytes)
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        read_bytes, kept_bytes = ([], []) if columns is None else column_bytes(metadata, groups, columns)
        return Footer(
            row_groups=compact([group.num_rows for group in groups]),
            read_bytes=compact(read_bytes),
            kept_bytes=compact(kept_bytes),
            num_bytes=num_bytes,
            schema=metadata.schema.to_arrow_schema(),
        )

    def read(
        self, file: Positioned, source: "Source", schema: pa.Schema, ranges: Sequence[Range]
    ) -> Iterator[pa.Table]:
        return decoded(file, schema.names, ranges, source.footer_bytes)
