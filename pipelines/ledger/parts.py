"""A part: its name, its Parquet file, and the record in its footer. It knows no task and no folder."""

import hashlib
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.pipelines.metrics import UnitRecord

FOOTER_KEY = b"batchloom"


def is_part_name(name: str) -> bool:
    """Return whether a file's name has the form of a part's."""
    return re.fullmatch(r"part-.*-[0-9a-f]{12}-[0-9a-f]{8}\.parquet", name) is not None


def to_parquet(table: pa.Table) -> bytes:
    """Return a table as a Parquet file with page checksums."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def read_record(name: str, content: bytes) -> tuple[UnitRecord, str]:
    """Return the record in a part's footer, and its fingerprint. Raises: ValueError where it is no intact part."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(content)).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it is not readable as Parquet ({error})") from error
    if FOOTER_KEY not in metadata:
        raise ValueError("its footer has no batchloom record")
    footer = json.loads(metadata[FOOTER_KEY])
    digest = hashlib.sha256(content).hexdigest()
    return UnitRecord(part=name, bytes=len(content), sha256=digest, **footer["account"]), footer["fingerprint"]


def check_pages(content: bytes) -> None:
    """Verify the checksums of a part's pages, which its footer does not cover. Raises: ValueError where one differs."""
    try:
        pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it is damaged ({error})") from error
