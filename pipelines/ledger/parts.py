"""A part: its name, its Parquet file, and the record in its footer. It knows no task and no folder.

A part is sealed: its footer holds the SHA-256 of the whole file, taken with zeros in the seal's own place. So one pass
over the bytes tells that they are the ones that were written, footer included, without any other record.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchloom.pipelines.metrics import UnitRecord
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.records import from_json, parsed

FOOTER_KEY = b"batchloom"
NO_SEAL = "0" * 64
UNSEALED = {"account", "fingerprint", "unit", "version"}  # what footers held before there were seals
TOKEN_COUNTS = ("num_input_tokens", "num_output_tokens", "num_truncated_tokens")


@dataclass(frozen=True)
class Footer:
    """What a part says of itself, in agreement with its name and with Parquet's own count of rows."""

    record: UnitRecord
    """Without `sha256`, where only the footer was read."""
    unit: str
    """The unit's id: shard, its size and version, and the rows."""
    fingerprint: str
    seal: str | None
    """None in parts of a version that wrote none."""


def is_part_name(name: str) -> bool:
    """Return whether a file's name has the form of a part's."""
    return re.fullmatch(r"part-[^/]*-[0-9a-f]{12}-[0-9a-f]{8}\.parquet", name) is not None


def counts_of(part: pa.Table) -> dict[str, Any]:
    """Return a part's figures, counted from its columns: those of UnitRecord that columns tell."""
    kinds = Counter(pc.struct_field(part["error"], "kind").drop_null().to_pylist())
    tokens = {name: pc.sum(part[name]).as_py() or 0 for name in TOKEN_COUNTS}
    errors = {"num_errors": len(part) - part["error"].null_count, "errors_by_kind": dict(sorted(kinds.items()))}
    return {"num_rows": len(part), **tokens, **errors}


def to_parquet(table: pa.Table, footer: Mapping[str, Any]) -> bytes:
    """Return a table as a sealed Parquet file with page checksums and `footer` in its metadata."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({FOOTER_KEY: json.dumps({**footer, "seal": NO_SEAL}, sort_keys=True)})
    content = sink.getvalue().to_pybytes()
    before, _, after = content.rpartition(NO_SEAL.encode())
    return before + hashlib.sha256(content).hexdigest().encode() + after


def read_part(name: str, content: bytes) -> Footer:
    """Return the footer of a part after a check of all of its bytes. Raises: ValueError where it is not whole."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(content))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not readable as Parquet ({error})") from error
    footer = read_footer(name, len(content), metadata)
    if footer.seal is None:
        _check_pages(content)
        return _with_digest(footer, hashlib.sha256(content))
    place = max(content.rfind(footer.seal.encode()), 0)
    digest = hashlib.sha256(memoryview(content)[:place])
    sealed = digest.copy()  # both hashes in one pass: the seal is near the end
    digest.update(content[place:])
    sealed.update(NO_SEAL.encode() + content[place + len(NO_SEAL) :])
    if sealed.hexdigest() != footer.seal:
        raise ValueError("its bytes are not the ones that were written: its seal is broken")
    return _with_digest(footer, digest)


def read_footer(name: str, size: int, metadata: pq.FileMetaData) -> Footer:
    """Return what a part's footer says. `size`: bytes of the file.

    Raises: ValueError where there is no account in it, or another one than its name and Parquet's rows tell.
    """
    kept = metadata.metadata or {}
    if FOOTER_KEY not in kept:
        raise ValueError("its footer has no batchloom record")
    try:
        values = parsed(kept[FOOTER_KEY])
    except ValueError as error:
        raise ValueError(f"its footer's record is no JSON ({error})") from error
    if not isinstance(values, dict) or not isinstance(values.get("account"), dict):
        raise ValueError("its footer's record has no account")
    if "seal" not in values and set(values) != UNSEALED:
        raise ValueError("its footer's record has no seal")
    account = {**values["account"], "part": name, "bytes": size, "sha256": ""}
    try:
        footer = from_json(Footer, {"seal": None, **values, "record": account})
    except ValueError as error:
        raise ValueError(f"its footer's record is wrong: {error}") from error
    for problem in _contradictions(footer, metadata.num_rows):
        raise ValueError(problem)
    return footer


def _with_digest(footer: Footer, digest: "hashlib._Hash") -> Footer:
    return replace(footer, record=replace(footer.record, sha256=digest.hexdigest()))


def _contradictions(footer: Footer, num_rows: int) -> Iterator[str]:
    record = footer.record
    unit = Unit(shard=record.shard, path="", start=record.start, stop=record.stop, id=footer.unit)
    if unit.part_name(footer.fingerprint) != record.part:
        yield f"its footer is that of {unit.part_name(footer.fingerprint)}"
    if record.num_rows != num_rows or record.stop - record.start != num_rows:
        yield f"it has {num_rows} rows for rows {record.start} to {record.stop} of {record.shard}"


def _check_pages(content: bytes) -> None:
    """Verify the checksums of a part's pages, which its footer does not cover. Raises: ValueError where one differs."""
    try:
        pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it is damaged ({error})") from error
