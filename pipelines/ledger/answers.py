"""Answers of finished units whose part is not finished: small sealed files below `_batchloom/answers`.

`PART-FINGERPRINT/START-STOP.pq` holds the task's columns and the ledger for rows `[START, STOP)` of the part: what
a kill cannot take back. They go when their part is written.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from batchloom.pipelines.counts import Counts
from batchloom.pipelines.ledger.parts import chosen_of
from batchloom.pipelines.ledger.sealed import Sealed, sealed
from batchloom.pipelines.planning.spans import Range
from batchloom.pipelines.planning.units import Part
from batchloom.pipelines.records import from_json
from batchloom.pipelines.selection.mask import Mask
from batchloom.pipelines.stores.storage import Store, Stored

FOLDER = "_batchloom/answers"


@dataclass(frozen=True)
class Saved:
    """A file with answers, by its name."""

    part: str
    """The part's id."""
    fingerprint: str
    ranges: tuple[Range, ...]
    """Which rows of the part."""

    @property
    def name(self) -> str:
        """Below the output folder. Of several ranges, as where rows with errors are computed again, a hash tells."""
        start, stop = self.ranges[0][0], self.ranges[-1][1]
        others = "" if len(self.ranges) == 1 else f"-{hashlib.sha256(repr(self.ranges).encode()).hexdigest()[:8]}"
        return f"{FOLDER}/{self.part}-{self.fingerprint[:8]}/{start:09d}-{stop:09d}{others}.pq"

    def write(self, store: Store, answers: pa.Table, counts: Mapping[str, Any], chosen: Mask | None = None) -> None:
        """`chosen`: which of the rows have an answer; None where all have. Raises: StoreError."""
        footer = {"part": self.part, "fingerprint": self.fingerprint, "ranges": self.ranges, "counts": dict(counts)}
        store.put(self.name, sealed(answers, {**footer, "chosen": chosen and asdict(chosen)}))

    @property
    def num_rows(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    def read(self, store: Store, schema: pa.Schema) -> tuple[pa.Table, Counts, Mask | None]:
        """Return the answers, one row for each chosen row of the ranges, what they add up to, and which are chosen.

        Raises: FileNotFoundError; ValueError where the file is not the one that was written, at a second look as well;
            StoreError.
        """
        try:
            return self._read(store, schema)
        except ValueError:
            return self._read(store, schema)

    def _read(self, store: Store, schema: pa.Schema) -> tuple[pa.Table, Counts, Mask | None]:
        file = Sealed.of(store.read(self.name))
        told = {name: file.footer.get(name) for name in ("part", "fingerprint", "ranges")}
        mine = {"part": self.part, "fingerprint": self.fingerprint, "ranges": json.loads(json.dumps(self.ranges))}
        if told != mine:
            raise ValueError(f"it holds {told}, and by its name {mine}")
        chosen = chosen_of(file.footer, self.num_rows)
        num_chosen = self.num_rows if chosen is None else chosen.num_chosen
        if file.metadata.num_rows != num_chosen:
            raise ValueError(f"it holds {file.metadata.num_rows} answers to {num_chosen} rows")
        return file.table(schema), from_json(Counts, file.footer.get("counts")), chosen

    def is_damaged(self, store: Store, schema: pa.Schema) -> bool:
        """Whether the file is there and not the one that was written. Raises: StoreError."""
        try:
            self.read(store, schema)
        except FileNotFoundError:
            return False
        except ValueError:
            return True
        return False

    def errors_by_kind(self, store: Store) -> Mapping[str, int]:
        """Return the errors among the answers; none where the file is damaged or gone, which its reader tells.

        Raises: StoreError.
        """
        try:
            return from_json(Counts, Sealed.of(store.read(self.name)).footer.get("counts")).errors_by_kind
        except (ValueError, FileNotFoundError):
            return {}

    def empty(self, store: Store) -> None:
        """Make a damaged file one that holds nothing. Who may write may do so, and removal may not be permitted.

        Raises: StoreError.
        """
        store.put(self.name, b"")


def saved_for(part: Part, fingerprint: str, names: Iterable[str]) -> list[Saved]:
    """Return the files, of one range each, that together hold as much of a part as can be, no row twice.

    `names`: of files in the part's folder.
    """
    fitting = (own for own in _ranges(names) if own[1] <= part.num_rows)
    return [Saved(part.id, fingerprint, (own,)) for own in _disjoint(fitting)]


def folder_of(part: Part, fingerprint: str) -> str:
    return f"{part.id}-{fingerprint[:8]}"


def by_folder(files: Mapping[str, Stored]) -> dict[str, list[str]]:
    """Return the names of files with answers by the folder of their part. Those that were emptied have none."""
    found: dict[str, list[str]] = {}
    for name, stored in files.items():
        match name.split("/"):
            case [*above, folder, file] if "/".join(above) == FOLDER and stored.size:
                found.setdefault(folder, []).append(file)
    return found


def num_rows_in(names: Iterable[str]) -> int:
    """Return how many rows the files of a part's folder answer; those of scattered rows are not counted."""
    return sum(high - low for low, high in _disjoint(_ranges(names)))


def _disjoint(ranges: Iterable[Range]) -> Iterator[Range]:
    """Yield ranges in order, without those that overlap one before."""
    stop = 0
    for low, high in sorted(ranges):
        if low >= stop:
            yield low, high
            stop = high


def _ranges(names: Iterable[str]) -> Sequence[Range]:
    matches = (re.fullmatch(r"(\d{9,})-(\d{9,})\.pq", name) for name in names)
    ranges = [(int(match[1]), int(match[2])) for match in matches if match]
    return [(low, high) for low, high in ranges if low < high]
