"""Writes tables as files of every form that an input may have."""

import gzip
import json
from bz2 import compress as bz2_compress
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

COMPRESSED: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".bz2": bz2_compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}
FORMS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.bz2", ".csv", ".csv.gz", ".tsv", ".txt", ".txt.zst")


def write(table: pa.Table, folder: Path, name: str, form: str) -> Path:
    """Write a table as the form that an ending names. Of text only the column `text` is there."""
    path = folder / f"{name}{form}"
    if form == ".parquet":
        pq.write_table(table, path, row_group_size=40)
        return path
    ending, _, compression = form[1:].partition(".")
    content = _content(table, ending)
    path.write_bytes(COMPRESSED[f".{compression}"](content) if compression else content)
    return path


def _content(table: pa.Table, ending: str) -> bytes:
    match ending:
        case "jsonl" | "json":
            return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode()
        case "csv" | "tsv":
            sink = pa.BufferOutputStream()
            pcsv.write_csv(table, sink, pcsv.WriteOptions(delimiter="," if ending == "csv" else "\t"))
            return sink.getvalue().to_pybytes()
    return "".join(text + "\n" for text in table["text"].to_pylist()).encode()
