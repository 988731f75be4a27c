"""Delimited values: CSV and TSV. Whole numbers and numbers are such, and everything else is text as it stands."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.csv as pcsv

from batchloom.pipelines.arrow_functions import pc
from batchloom.pipelines.formats.records import LONG, RecordFormat, merged

LONG_NUMBER = "^-?[0-9]{16,}$"
NO_NUMBER = "^[+]|^-?0[0-9]"  # a telephone number, a postal code
INFINITE = "(?i)inf"


@dataclass(frozen=True)
class Csv(RecordFormat):
    """Comma-separated values."""

    header_row: bool = True
    delimiter: str = ","
    quote: str | None = '"'
    escape: str | None = None

    name: ClassVar[str] = "csv"
    title: ClassVar[str] = "CSV"
    endings: ClassVar[tuple[str, ...]] = (".csv",)
    values_are_texts: ClassVar[bool] = True
    blank: ClassVar[bytes] = b"\r\n"

    @cached_property
    def record(self) -> re.Pattern[bytes]:
        """Fields between delimiters, up to a line's end outside of quotes, as Arrow takes them apart."""
        delimiter, quote, escape = (re.escape(one or "").encode() for one in (self.delimiter, self.quote, self.escape))
        escaped = rb"|%s[\s\S]" % escape if escape else b""
        field = plain = rb"(?:[^%s\r\n%s]++%s)*+" % (delimiter, escape, escaped)
        if quote:
            inner = rb"(?:[^%s%s]++|%s%s%s)*+" % (quote, escape, quote, quote, escaped)
            field = rb"(?:%s%s%s%s|(?!%s)%s)" % (quote, inner, quote, plain, quote, plain)
        return re.compile(rb"(?:%s%s)*+%s(?:\r\n|\n|\r(?!\n|\Z))" % (field, delimiter, field))

    @property
    def naming(self) -> str:
        names = "what the first record says" if self.header_row else "numbered, as input.csv.header is false"
        return f"Names are {names}, and between columns is {self.delimiter!r} (input.csv.header, input.csv.delimiter)."

    def header(self, first: bytes) -> tuple[tuple[str, ...], bool]:
        if not self.header_row:
            return tuple(self._read([first], autogenerate_column_names=True).column_names), False
        first.decode()
        return tuple(self._read([first.rstrip(self.blank), b"\n"]).column_names), True

    def guess(self, records: Sequence[bytes], names: Sequence[str]) -> pa.Table:
        as_texts = pcsv.ConvertOptions(check_utf8=False, column_types=dict.fromkeys(names, pa.string()))
        table = self._read(records, as_texts, column_names=list(names))
        return pa.table([_guessed(column) for column in table.columns], list(names))

    def parse(self, records: Sequence[bytes], names: Sequence[str], schema: pa.Schema) -> pa.Table:
        convert = pcsv.ConvertOptions(
            check_utf8=False,  # is known
            column_types=schema,
            include_columns=schema.names,
            include_missing_columns=True,
            null_values=[""],  # of numbers: an empty text is a text
        )
        return self._read(records, convert, column_names=list(names))

    def merged(self, schema: pa.Schema, other: pa.Schema) -> pa.Schema:
        """Columns are told by their places: several may have one name."""
        return pa.schema(list(map(merged, schema, other))) if schema.names else other

    def settled(self, schema: pa.Schema) -> pa.Schema:
        """A column without a value is one of empty texts."""
        kinds = [pa.string() if pa.types.is_null(kind) else kind for kind in schema.types]
        return super().settled(pa.schema(list(zip(schema.names, kinds, strict=True))))

    def settings(self) -> dict[str, object]:
        own = {"header": self.header_row, "delimiter": self.delimiter, "quote": self.quote, "escape": self.escape}
        return {**super().settings(), **own}

    def _read(self, records: Sequence[bytes], convert: pcsv.ConvertOptions | None = None, **options: Any) -> pa.Table:
        content = b"".join(records)
        return pcsv.read_csv(
            pa.BufferReader(content),
            pcsv.ReadOptions(use_threads=False, block_size=len(content) + 1, **options),
            pcsv.ParseOptions(
                delimiter=self.delimiter,
                quote_char=self.quote or False,
                escape_char=self.escape or False,
                newlines_in_values=True,
            ),
            convert,
        )


@dataclass(frozen=True)
class Tsv(Csv):
    """Tab-separated values."""

    delimiter: str = "\t"

    name: ClassVar[str] = "tsv"
    title: ClassVar[str] = "TSV"
    endings: ClassVar[tuple[str, ...]] = (".tsv",)


def _guessed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the column as numbers, where these say all that the texts say, or as it is."""
    present = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    if present.null_count == len(present):
        return pa.chunked_array([pa.nulls(len(present))])
    try:
        numbers = present.cast(pa.int64())
    except pa.ArrowInvalid:
        return column if _any_like(present, NO_NUMBER, LONG_NUMBER) else _as_floats(column, present)
    if not numbers.cast(pa.string()).equals(present):
        return column
    return numbers.cast(LONG) if _any_like(present, LONG_NUMBER) else numbers


def _as_floats(column: pa.ChunkedArray, present: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        numbers = present.cast(pa.float64())
    except pa.ArrowInvalid:
        return column
    is_too_large = pc.and_not(pc.is_inf(numbers), pc.match_substring_regex(present, INFINITE))
    return column if pc.any(is_too_large).as_py() else numbers


def _any_like(column: pa.ChunkedArray, *patterns: str) -> bool:
    return any(pc.any(pc.match_substring_regex(column, pattern)).as_py() for pattern in patterns)
