"""A scan goes through a file of records once, and cuts it into row groups. It knows no columns."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from batchloom.pipelines.formats.contents import Contents

ROW_GROUP_BYTES = 1 << 20
SCANNED_BYTES = 1 << 21  # in one request
MAX_RECORD_BYTES = 1 << 28


@dataclass(frozen=True)
class Scan:
    """One file, and what its records are."""

    contents: Contents
    record: re.Pattern[bytes]
    """Matches one record with its end, or nothing where the record does not end."""
    blank: bytes
    """What has only these bytes between two ends is no record."""
    is_header: Callable[[bytes], bool]
    """Whether the first record is no row."""
    start: int
    """The byte at which the first record begins."""

    def groups(self) -> Iterator[tuple[list[bytes], int, int]]:
        """Yield the records of each row group, and the bytes at which it begins and ends.

        Raises: as `contents.read`; pa.ArrowInvalid where a record does not end; what `is_header` raises.
        """
        records, start, stop = list[bytes](), self.start, self.start
        is_first = True
        for record in self._records():
            stop += len(record)
            if not record.strip(self.blank):
                continue
            if is_first and self.is_header(record):
                start = stop
            else:
                records.append(record)
            is_first = False
            if records and stop - start >= ROW_GROUP_BYTES:
                yield records, start, stop
                records, start = [], stop
        if records:
            yield records, start, stop

    def _records(self) -> Iterator[bytes]:
        held, stop = b"", self.start
        while content := self.contents.read(stop, max(SCANNED_BYTES, len(held))):
            stop += len(content)
            held += content
            end = 0
            while (found := self.record.match(held, end)) is not None:
                yield found.group()
                end = found.end()
            held = held[end:]
            if len(held) > MAX_RECORD_BYTES:
                raise _unended(stop - len(held), f" within {MAX_RECORD_BYTES >> 20} MiB")
        if held:
            if self.record.fullmatch(held + b"\n") is None:
                raise _unended(stop - len(held))
            yield held


def records_in(content: bytes, record: re.Pattern[bytes], blank: bytes) -> list[bytes]:
    """Return the records of a row group."""
    records, end = list[bytes](), 0
    while (found := record.match(content, end)) is not None:
        records.append(found.group())
        end = found.end()
    return [one for one in (*records, content[end:]) if one.strip(blank)]


def _unended(start: int, within: str = "") -> pa.ArrowInvalid:
    return pa.ArrowInvalid(
        f"the record at byte {start} does not end{within}: is a quote opened and never closed? "
        "Where quotes are no more than text, set input.csv.quote: null."
    )
