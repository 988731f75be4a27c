"""Kept footers are those that a plan has read, in the output folder: to plan the same shards again takes a listing.

`_batchloom/footers.pq` has a row for each input file, found by its path, size and version. It decides nothing:
where it is missing, damaged, or counts the bytes of other columns, the footers are read again.

A local file has no version but the time of its last change, which `touch` and copies set anew. So its hash is kept as
well, where all local files are small together: one that has another time and the same hash is the one that it was.
"""

import base64
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
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
FORMAT = 4  # another number is not read
HASHED_BYTES = 4 << 30  # of new local files: four seconds at the start of a job
HASH_THREADS = 4
NUMBERS = ("row_groups", "read_bytes", "kept_bytes", "offsets")
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),  # as it is listed
        ("identity", pa.string()),  # the version that it had when it was planned first
        ("sha256", pa.string()),  # null where nobody has read all of it
        ("footer_bytes", pa.int64()),
        ("schema", pa.int32()),  # its place among the schemas in the file's metadata
        *((name, pa.list_(pa.int64())) for name in NUMBERS),
    ]
)


@dataclass(frozen=True)
class Known:
    """A file that was planned before."""

    footer: Footer | None
    """None where the bytes of other columns are counted in it, or the file was read as one of another format."""
    version: str
    """That it was planned with."""


class KeptFooters:
    """The footers that are kept in an output folder."""

    def __init__(self, store: Store, columns: Columns | None) -> None:
        """`columns` whose bytes are counted; None where nobody asks for bytes: then those of any will do."""
        self._store, self._columns = store, columns
        self._is_complete = False
        self._hashes: dict[str, str] = {}  # of files that are as they were, by path

    def take(self, files: Sequence[InputFile], settings: Mapping[str, Any], are_local: bool) -> list[Known | None]:
        """Return what is known of each file that is as it was when its footer was read, None for the others.

        `settings` of the format: with others, files have other rows.
        """
        table, schemas, is_of_use = self._read(settings)
        number_of = {path: row for row, path in enumerate(table["path"].to_pylist())}
        sizes, versions, identities, hashes = (
            table[name].to_pylist() for name in ("size", "version", "identity", "sha256")
        )
        rows: dict[str, int] = {}
        touched: dict[str, int] = {}
        for file in files:
            row = number_of.get(_public_path(file.path))
            if row is not None and sizes[row] == file.size:
                if versions[row] == file.version:
                    rows[file.path] = row
                elif are_local and hashes[row]:
                    touched[file.path] = row
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            found = zip(touched, pool.map(_hash_of, touched), strict=True)
            same = {path: touched[path] for path, one in found if one == hashes[touched[path]]}
        self._is_complete = is_of_use and len(table) == len(files) == len(rows)
        rows |= same
        self._hashes = {path: hashes[row] for path, row in rows.items() if hashes[row]}
        footers = _footers(table, schemas) if is_of_use else [None] * len(table)
        known = [rows.get(file.path) for file in files]
        return [None if row is None else Known(footers[row], identities[row]) for row in known]

    def keep(
        self,
        config: InputConfig,
        patience: Patience,
        settings: Mapping[str, Any],
        files: Sequence[tuple[InputFile, Footer, str]],
        are_local: bool,
    ) -> None:
        """Write the footers of the input's files, and the versions that they were planned with.

        The input is listed once more: what changed since, or cannot be told to be unchanged, is not kept. Footers that
        cannot be written are only named in the log.
        """
        if self._is_complete:
            return
        if are_local:
            self._hash([file for file, *_ in files if file.path not in self._hashes])
        try:
            now = {(file.path, file.size, file.version) for file in find_files(config, patience).files}
            same = [
                (file, footer, version, self._hashes.get(file.path))
                for file, footer, version in files
                if file.version and _public_path(file.path) and (file.path, file.size, file.version) in now
            ]
            self._store.put(NAME, _to_parquet(same, self._columns, settings))
        except PipelineError as error:
            log.warning("The footers of the input are not kept, and the next plan reads them again: %s", error)

    def _hash(self, files: Sequence[InputFile]) -> None:
        """Take note of the files' hashes, where they are small together."""
        if sum(file.size or 0 for file in files) <= HASHED_BYTES:
            with ThreadPoolExecutor(HASH_THREADS) as pool:
                hashes = pool.map(_hash_of, [file.path for file in files])
                self._hashes |= {file.path: one for file, one in zip(files, hashes, strict=True) if one}

    def _read(self, settings: Mapping[str, Any]) -> tuple[pa.Table, list[pa.Schema], bool]:
        """Return (rows as SCHEMA has them, schemas, whether the footers are of use)."""
        try:
            return _from_parquet(self._store.read(NAME), self._columns, settings)
        except FileNotFoundError:
            pass
        except (StoreError, ValueError) as error:
            log.warning("%s/%s is of no use, and footers are read again: %s", self._store.url, NAME, error)
        return SCHEMA.empty_table(), [], True


def _public_path(path: str) -> str:
    """Return a path as it may be written: a URL without its signature; empty where a credential would remain."""
    public = public_name(path) if path.startswith(("http://", "https://")) else path
    return public if redacted(public) == public else ""


def _hash_of(path: str) -> str:
    """Return the hash of a local file; empty where it cannot be read, which its reader tells."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


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
    kept: Sequence[tuple[InputFile, Footer, str, str | None]], columns: Columns | None, settings: Mapping[str, Any]
) -> bytes:
    """Return files, footers, the versions that they were planned with, and their hashes, as a sealed file."""
    footers = [footer for _, footer, *_ in kept]
    shared = {id(footer.schema): footer.schema for footer in footers}
    number_of = {schema: number for number, schema in enumerate(shared)}
    schemas = [base64.b64encode(schema.serialize().to_pybytes()).decode() for schema in shared.values()]
    columns_of = {
        "path": [_public_path(file.path) for file, *_ in kept],
        "size": [file.size for file, *_ in kept],
        "version": [file.version for file, *_ in kept],
        "identity": [version for *_, version, _ in kept],
        "sha256": [one for *_, one in kept],
        "footer_bytes": [footer.num_bytes for footer in footers],
        "schema": [number_of[id(footer.schema)] for footer in footers],
        **{name: _lists([getattr(footer, name) for footer in footers]) for name in NUMBERS},
    }
    said = {"format": FORMAT, "settings": settings, "columns": columns and asdict(columns), "schemas": schemas}
    return sealed(pa.table(columns_of, SCHEMA), said)


def _lists(arrays: Sequence[Sequence[int]]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, arrays)])
    values = np.concatenate([np.asarray(one, np.int64) for one in (*arrays, ())])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))


def _from_parquet(
    content: bytes, columns: Columns | None, settings: Mapping[str, Any]
) -> tuple[pa.Table, list[pa.Schema], bool]:
    """Return (rows as SCHEMA has them, schemas, whether the footers are of use).

    Raises: ValueError where the file is not as it was written.
    """
    file = Sealed.of(content)
    if file.footer.get("format") != FORMAT:
        raise ValueError("it was written by another version")
    is_of_use = True
    if file.footer["settings"] != json.loads(json.dumps(settings)):
        log.info("Footers are read again: the files are read by another format.")
        is_of_use = False
    if columns is not None and file.footer["columns"] != json.loads(json.dumps(asdict(columns))):
        log.info("Footers are read again: the job reads or keeps other columns than before.")
        is_of_use = False
    schemas = [pa.ipc.read_schema(pa.py_buffer(base64.b64decode(one))) for one in file.footer["schemas"]]
    return file.table(SCHEMA), schemas, is_of_use
