"""A source is an input file as it was planned: where it is, and which version of it. It opens nothing."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batchloom.pipelines.errors import JobError
from batchloom.pipelines.stores.storage import VERSION_KEYS
from batchloom.pipelines.tables.deleted import Deleted


@dataclass(frozen=True, slots=True)
class Source:
    """One input file."""

    name: str
    """The path below the input root, so that a moved dataset keeps its identities."""
    path: str
    """The path on its filesystem."""
    size: int | None
    """Bytes."""
    version: str
    """The etag or modification time, as the filesystem gives it."""
    footer_bytes: int | None = None
    """The length of the file's footer: who reads rows fetches it in one request. None where it is not known."""
    places: tuple[tuple[int, int], ...] = ()
    """Of a file of records: the row and the byte at which each row group begins that is wanted, and the last ends."""
    columns: tuple[str, ...] = ()
    """Of a file whose records have no names: those of its columns, in their order."""
    partitions: tuple[tuple[str, str | None], ...] | None = None
    """Of a table's file: the columns that have one value in all of its rows. None: those that its path tells."""
    deleted: Deleted | None = None
    """Of a table's file: the rows that the table does not have, of those that are wanted."""
    deletes: str = ""
    """A hash of all deleted rows."""
    touched: str = ""
    """The modification time of a file that has another one than `version` and is the same, byte for byte."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Source":
        """Read what `dataclasses.asdict` and JSON made of one."""
        places = tuple((row, byte) for row, byte in values["places"])
        columns, given, deleted = tuple(values["columns"]), values["partitions"], values["deleted"]
        partitions = None if given is None else tuple((name, value) for name, value in given)
        deleted = deleted and Deleted(tuple(deleted["rows"]), deleted["before"])
        return cls(**{**values, "places": places, "columns": columns, "partitions": partitions, "deleted": deleted})

    @property
    def identity(self) -> str:
        """A hash of name, size and version. Answers to another identity are answers to other rows."""
        told = [self.name, self.size, self.version, *filter(None, [self.deletes])]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    @property
    def listed_version(self) -> str:
        """The version that a listing gives."""
        return self.touched or self.version

    def check_unchanged(self, info: Mapping[str, Any]) -> None:
        """Compare a filesystem's info of the file with the planned one.

        Raises: JobError where no way to write `info` gives the planned size and version.
        """
        versions = list(_written(info))
        if self.size not in (info["size"], None) or self.listed_version not in versions:
            raise JobError(
                f"{self.name} has changed since the job was planned: it has {info['size']} bytes and is of version "
                f"{versions[0] or 'unknown'} now. Put it back and run the job again, or choose another output.path."
            )


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
