"""Kept footers are those that a plan has read, in the output folder: to plan the same shards again takes a listing.

`_batchloom/footers.pq` has a row for each input file, found by its path, size and version. It decides nothing:
where it is missing, damaged, or counts the bytes of other columns, the footers are read again.
"""

import base64
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from batchloom.models.patience import Patience
from batchloom.models.redaction import public_name, redacted
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import PipelineError, StoreError
from batchloom.pipelines.formats.base import Columns, Footer, compact
from batchloom.pipelines.ledger.sealed import Sealed, sealed
from batchloom.pipelines.planning.input_files import InputFile, find_files
from batchloom.pipelines.stores.storage import Store

log = logging.getLogger(__name__)

NAME = "_batchloom/footers.pq"
FORMAT = 2  # another number is not read
NUMBERS = ("row_groups", "read_bytes", "kept_bytes", "offsets")
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("footer_bytes", pa.int64()),
        ("schema", pa.int32()),  # its place among the schemas in the file's metadata
        *((name, pa.list_(pa.int64())) for name in NUMBERS),
    ]
)


class KeptFooters:
    """The footers that are kept in an output folder."""

    def __init__(self, store: Store, columns: Columns | None) -> None:
        """`columns` whose bytes are counted; None where nobody asks for bytes: then those of any will do."""
        self._store, self._columns = store, columns
        self._is_complete = False

    def take(self, files: Sequence[InputFile], settings: Mapping[str, Any]) -> list[Footer | None]:
        """Return the footer of each file that is listed as it was when its footer was read, None for the others.

        `settings` of the format: with others, files have other rows.
        """
        table, schemas = self._read(settings)
        number_of = {path: row for row, path in enumerate(table["path"].to_pylist())}
        sizes, versions = table["size"].to_pylist(), table["version"].to_pylist()
        found = [number_of.get(_public_path(file.path)) for file in files]
        rows = [
            row if row is not None and (sizes[row], versions[row]) == (file.size, file.version) else None
            for row, file in zip(found, files, strict=True)
        ]
        self._is_complete = len(table) == len(files) and None not in rows
        footers = _footers(table, schemas)
        return [None if row is None else footers[row] for row in rows]

    def keep(
        self,
        config: InputConfig,
        patience: Patience,
        settings: Mapping[str, Any],
        footers: Sequence[tuple[InputFile, Footer]],
    ) -> None:
        """Write the footers of the input's files. It is listed once more: what changed since, or cannot be told to be
        unchanged, is not kept. Footers that cannot be written are only named in the log.
        """
        if self._is_complete:
            return
        try:
            now = {(file.path, file.size, file.version) for file in find_files(config, patience).files}
            same = [
                (file, footer)
                for file, footer in footers
                if file.version and _public_path(file.path) and (file.path, file.size, file.version) in now
            ]
            self._store.put(NAME, _to_parquet(same, self._columns, settings))
        except PipelineError as error:
            log.warning("The footers of the input are not kept, and the next plan reads them again: %s", error)

    def _read(self, settings: Mapping[str, Any]) -> tuple[pa.Table, list[pa.Schema]]:
        try:
            return _from_parquet(self._store.read(NAME), self._columns, settings)
        except FileNotFoundError:
            pass
        except (StoreError, ValueError) as error:
            log.warning("%s/%s is of no use, and footers are read again: %s", self._store.url, NAME, error)
        return SCHEMA.empty_table(), []


def _public_path(path: str) -> str:
    """Return a path as it may be written: a URL without its signature; empty where a credential would remain."""
    public = public_name(path) if path.startswith(("http://", "https://")) else path
    return public if redacted(public) == public else ""


def _footers(table: pa.Table, schemas: Sequence[pa.Schema]) -> list[Footer]:
    numbers = zip(*(_arrays(table[name]) for name in NUMBERS), strict=True)
    ends = zip(table["footer_bytes"].to_pylist(), table["schema"].to_pylist(), strict=True)
    return [
        Footer(row_groups, read_bytes, kept_bytes, num_bytes, schemas[schema], offsets or ())
        for (row_groups, read_bytes, kept_bytes, offsets), (num_bytes, schema) in zip(numbers, ends, strict=True)
    ]


def _arrays(column: pa.ChunkedArray) -> Iterator[Any]:
    for chunk in column.chunks:
        values, offsets = chunk.values.to_numpy(), chunk.offsets.to_pylist()
        yield from (compact(values[start:stop].tolist()) for start, stop in pairwise(offsets))


def _to_parquet(
    kept: Sequence[tuple[InputFile, Footer]], columns: Columns | None, settings: Mapping[str, Any]
) -> bytes:
    """Return the footers as a sealed file."""
    shared = {id(footer.schema): footer.schema for _, footer in kept}
    number_of = {schema: number for number, schema in enumerate(shared)}
    schemas = [base64.b64encode(schema.serialize().to_pybytes()).decode() for schema in shared.values()]
    columns_of = {
        "path": [_public_path(file.path) for file, _ in kept],
        "size": [file.size for file, _ in kept],
        "version": [file.version for file, _ in kept],
        "footer_bytes": [footer.num_bytes for _, footer in kept],
        "schema": [number_of[id(footer.schema)] for _, footer in kept],
        **{name: _lists([getattr(footer, name) for _, footer in kept]) for name in NUMBERS},
    }
    said = {"format": FORMAT, "settings": settings, "columns": columns and asdict(columns), "schemas": schemas}
    return sealed(pa.table(columns_of, SCHEMA), said)


def _lists(arrays: Sequence[Sequence[int]]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, arrays)])
    values = np.concatenate([np.asarray(one, np.int64) for one in (*arrays, ())])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))


def _from_parquet(
    content: bytes, columns: Columns | None, settings: Mapping[str, Any]
) -> tuple[pa.Table, list[pa.Schema]]:
    """Return (rows as SCHEMA has them, schemas). Raises: ValueError where the file is not as it was written."""
    file = Sealed.of(content)
    if file.footer.get("format") != FORMAT:
        raise ValueError("it was written by another version")
    if file.footer["settings"] != json.loads(json.dumps(settings)):
        log.info("Footers are read again: the files are read by another format.")
        return SCHEMA.empty_table(), []
    if columns is not None and file.footer["columns"] != json.loads(json.dumps(asdict(columns))):
        log.info("Footers are read again: the job reads or keeps other columns than before.")
        return SCHEMA.empty_table(), []
    schemas = [pa.ipc.read_schema(pa.py_buffer(base64.b64decode(one))) for one in file.footer["schemas"]]
    return file.table().cast(SCHEMA), schemas
