"""A footer is the end of a Parquet file: it tells where row groups lie, how large they are, and of which columns."""

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.pipelines.formats.base import Columns
from batchloom.pipelines.stores.patient_file import Positioned

MAGIC = b"PAR1"
TAIL = 8  # bytes: the length of the metadata, and the magic
FIRST_GUESS = 1 << 16  # bytes of a footer before any was seen


def read_footer(file: Positioned, num_bytes: int | None = None) -> tuple[pq.FileMetaData, int]:
    """Return the metadata at the end of a file, and how many bytes they are. `num_bytes`: about the same, where known.

    Raises: as `file.read`; pa.ArrowException where the bytes are no footer.
    """
    size = file.size
    tail = _read(file, max(0, size - max(num_bytes or FIRST_GUESS, TAIL)), size)
    num_bytes = int.from_bytes(tail[-TAIL:-4], "little") + TAIL if tail.endswith(MAGIC) else len(tail)
    if num_bytes > size:
        raise pa.ArrowInvalid(f"Its footer has {num_bytes} bytes, as it says, and the file {size}.")
    if num_bytes > len(tail):
        tail = _read(file, size - num_bytes, size - len(tail)) + tail
    return pq.read_metadata(pa.BufferReader(memoryview(tail)[len(tail) - num_bytes :])), num_bytes


def _read(file: Positioned, start: int, stop: int) -> bytes:
    file.seek(start)
    content: bytes = file.read(stop - start)
    return content


def leaves_of(metadata: pq.FileMetaData, names: Iterable[str]) -> list[int]:
    """Return the numbers of the leaf columns that belong to the columns of these names: nested ones have several."""
    chosen = set(names)
    return [leaf for leaf, columns in enumerate(columns_of_leaves(metadata)) if not chosen.isdisjoint(columns)]


def columns_of_leaves(metadata: pq.FileMetaData) -> Iterator[list[str]]:
    """Yield the names of the columns that each leaf belongs to: a.b.c to a, to a.b, and to a.b.c itself."""
    for leaf in range(metadata.num_columns):
        steps = metadata.schema.column(leaf).path.split(".")
        yield [".".join(steps[:num_steps]) for num_steps in range(1, len(steps) + 1)]


def column_bytes(
    metadata: pq.FileMetaData, groups: Sequence[pq.RowGroupMetaData], columns: Columns
) -> tuple[list[int], list[int]]:
    read = leaves_of(metadata, columns.read)
    read_bytes = [_num_bytes(group, read) for group in groups]
    if columns.kept is None:
        return read_bytes, [max(0, group.total_byte_size - num) for group, num in zip(groups, read_bytes, strict=True)]
    kept = leaves_of(metadata, columns.kept)
    return read_bytes, [_num_bytes(group, kept) for group in groups]


def _num_bytes(group: pq.RowGroupMetaData, leaves: Sequence[int]) -> int:
    return sum(max(0, group.column(leaf).total_uncompressed_size) for leaf in leaves)
