"""Parquet: row groups, types and sizes by the file's own footer."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from batchloom.pipelines.formats.base import Columns, Footer, Format, compact
from batchloom.pipelines.formats.beginnings import LONGEST, told_by
from batchloom.pipelines.formats.decode import decoded, schema_of
from batchloom.pipelines.formats.footer import MAGIC, column_bytes, read_footer
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
        try:
            metadata, num_bytes = read_footer(file, footer_bytes)
        except pa.ArrowInvalid as error:
            file.seek(0)
            beginning = file.read(LONGEST)
            if not beginning.startswith(MAGIC) and (told := told_by(beginning)):
                raise pa.ArrowInvalid(told) from error
            raise
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        read_bytes, kept_bytes = ([], []) if columns is None else column_bytes(metadata, groups, columns)
        return Footer(
            row_groups=compact([group.num_rows for group in groups]),
            read_bytes=compact(read_bytes),
            kept_bytes=compact(kept_bytes),
            num_bytes=num_bytes,
            schema=schema_of(metadata),
        )

    def read(
        self, file: Positioned, source: "Source", schema: pa.Schema, ranges: Sequence[Range]
    ) -> Iterator[pa.Table]:
        return decoded(file, list(paths_of(schema)), ranges, source.footer_bytes)


def paths_of(fields: Iterable[pa.Field]) -> Iterator[str]:
    """Yield columns, and of structs the columns inside."""
    for field in fields:
        if pa.types.is_struct(field.type) and field.type.num_fields:
            yield from (f"{field.name}.{path}" for path in paths_of(field.type))
        else:
            yield field.name
