"""Cut shards into units: which rows are computed together, and what their part is called. It opens no file."""

import hashlib
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from batchloom.pipelines.errors import JobError
from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.storage import VERSION_KEYS

STEM_BYTES = 180  # of the shard's name in a part's name: filesystems allow 255 bytes, and a character may have four


@dataclass(frozen=True)
class Unit:
    """The rows `[start, stop)` of one shard: the unit of work that is done or not done."""

    shard: str
    path: str
    start: int
    stop: int
    id: str

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def stem(self) -> str:
        """A readable name: the shard's file name without extension, and the rows."""
        name = posixpath.basename(self.shard).removesuffix(".parquet")
        safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in name).lstrip("._") or "shard"
        short = safe[:80].encode()[:STEM_BYTES].decode(errors="ignore")
        return f"{short}-{self.start:09d}-{self.stop:09d}"

    def part_name(self, fingerprint: str) -> str:
        """Return the name of the unit's part, a function of the unit and the fingerprint: if it exists, it is done."""
        return f"part-{self.stem}-{self.id[:12]}-{fingerprint[:8]}.parquet"

    def check_unchanged(self, info: Mapping[str, Any]) -> None:
        """Compare a filesystem's info of the shard with the one that the unit was planned with, which its id holds.

        Raises: JobError where no way to write `info` gives the unit's id.
        """
        versions = list(_written(info))
        pairs = [(size, version) for size in (info["size"], None) for version in versions]
        if all(_unit_id(self.shard, *pair, self.start, self.stop) != self.id for pair in pairs):
            raise JobError(
                f"{self.shard} has changed since the job was planned: it has {info['size']} bytes and is of version "
                f"{versions[0] or 'unknown'} now. Put it back and run the job again, or choose another output.path."
            )

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Unit":
        return Unit(**json.loads(text))


def cut(shard: Shard, rows_per_unit: int) -> Iterator[Unit]:
    """Yield units of at most `rows_per_unit` rows: several whole row groups, or a slice of one larger row group.

    Row groups of 3, 3, 3 and 20 rows at 8 rows per unit: [0,6) [6,9) [9,16) [16,23) [23,29).
    """
    for start, stop in _joined(shard.row_groups, rows_per_unit):
        num_slices = -(-(stop - start) // rows_per_unit)
        bounds = [start + (stop - start) * i // num_slices for i in range(num_slices + 1)]
        for low, high in pairwise(bounds):
            yield Unit(shard=shard.name, path=shard.path, start=low, stop=high, id=_id_of(shard, low, high))


def _joined(row_groups: Iterable[int], rows_per_unit: int) -> Iterator[tuple[int, int]]:
    start = stop = 0
    for num_rows in row_groups:
        if stop > start and stop + num_rows - start > rows_per_unit:
            yield start, stop
            start = stop
        stop += num_rows
    if stop > start:
        yield start, stop


def _id_of(shard: Shard, start: int, stop: int) -> str:
    return _unit_id(shard.name, shard.size, shard.version, start, stop)


def _unit_id(shard: str, size: int | None, version: str, start: int, stop: int) -> str:
    identity = [shard, size, version, start, stop]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]


def _written(info: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a listing may have given as the version of a file that has this info now, most exact first.

    A question about one file may be answered with more than a listing, or in other words: Azure quotes etags in it.
    """
    for key in VERSION_KEYS:
        if (value := info.get(key)) is not None:
            yield from (str(value), str(value).strip('"'), f'"{value}"')
            if isinstance(value, datetime):
                yield str(value.timestamp())
    yield ""
