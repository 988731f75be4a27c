"""The table of formats: by the names that `input.format` takes, and by the endings of file names."""

import posixpath
from collections.abc import Mapping

from batchloom.pipelines.config import CsvConfig
from batchloom.pipelines.formats.base import Format
from batchloom.pipelines.formats.contents import COMPRESSIONS, plain_name
from batchloom.pipelines.formats.delimited import Csv, Tsv
from batchloom.pipelines.formats.json_lines import JsonLines
from batchloom.pipelines.formats.parquet import Parquet
from batchloom.pipelines.formats.text import Documents, Lines

FORMATS: Mapping[str, type[Format]] = {one.name: one for one in (Parquet, JsonLines, Csv, Tsv, Lines, Documents)}
DOUBTFUL = (".json", ".txt")  # beside data such files are descriptions, licences, notes
FORMAT_OF = {ending: one.name for one in (Parquet, JsonLines, Csv, Tsv, Lines) for ending in one.endings}


def format_named(name: str, csv: CsvConfig) -> Format:
    """Return the format that is called so in `input.format`."""
    kind = FORMATS[name]
    if not issubclass(kind, Csv):
        return kind()
    escape = csv.escape if csv.escape != csv.quote else None  # so Spark names quotes that are doubled, which all may be
    return kind(csv.header, csv.delimiter or kind.delimiter, csv.quote, escape)


def ending_of(path: str) -> str:
    """Return the ending of a file's name, without that of a compression where another is before it: `.jsonl`, `.gz`.

    Parquet files are compressed inside: `.parquet.gz` is an ending of its own.
    """
    stem, ending = posixpath.splitext(plain_name(path))
    inner = posixpath.splitext(stem)[1] if ending in COMPRESSIONS else ""
    return f"{inner}{ending}" if inner in Parquet.endings else inner or ending


def format_of(path: str) -> str | None:
    """Return the name of the format that a file's ending tells."""
    return FORMAT_OF.get(ending_of(path))
