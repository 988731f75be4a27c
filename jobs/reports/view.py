"""Read an output folder as it is at this moment, finished or not: its records and some of its rows."""

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.errors import ConfigError, OutputError
from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.ledger import answers, ledger
from batchloom.pipelines.ledger.manifest import Manifest
from batchloom.pipelines.ledger.part_files import PartFile
from batchloom.pipelines.ledger.parts import is_part_name, key_of, mark_of
from batchloom.pipelines.ledger.register import Register
from batchloom.pipelines.stores.storage import Store, Stored

log = logging.getLogger(__name__)

READ_THREADS = 16
NOT_UTF8 = "(bytes that are no UTF-8)"

Row = dict[str, Any]
Found = TypeVar("Found")


@dataclass(frozen=True)
class View:
    """The contents of an output folder: its parts' records, and the manifest where the job is finished."""

    store: Store
    job: Mapping[str, Any]
    """The job as resolved when it was started, from the manifest or `_batchloom/job.json`."""
    manifest: Manifest | None
    records: Register
    there: Mapping[str, Stored]
    """The files that are there: others, which a manifest may name, are not opened."""
    kept_columns: tuple[str, ...] = ()
    """Of the input, in the parts."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The task's options, defaults included."""
    num_rows_answered: int = 0
    """Rows of the input whose answers are saved, or that are left out beside such, and not yet in a part."""

    @property
    def totals(self) -> Mapping[str, int]:
        totals = self.records.totals()
        return totals if self.manifest is None else {**totals, "left_out": self.manifest.totals["left_out"]}

    @property
    def errors_by_kind(self) -> Mapping[str, int]:
        return self.records.errors_by_kind()

    @property
    def spoilt(self) -> list[str]:
        """Parts that are missing, or have another size than they were written with."""
        return [
            record.part
            for record in self.records
            if record.part not in self.there or self.there[record.part].size != record.bytes
        ]

    @property
    def num_configurations(self) -> int:
        """Whose parts are here: more than one where two jobs have written."""
        return len({mark_of(record.part) for record in self.records})

    def sample(self, num_rows: int) -> list[Row]:
        """Return at most `num_rows` rows, from parts spread evenly over the output."""
        chosen = spread(self.records, num_rows)
        rows_per_part = math.ceil(num_rows / max(len(chosen), 1))
        read = [self.read(record.part, lambda part: rows_of(part.first_rows(rows_per_part))) for record in chosen]
        return [row for rows in read if rows is not None for row in rows][:num_rows]

    def matching(self, num_rows: int, where: str | None = None, kinds: Collection[str] | None = None) -> list[Row]:
        """Return at most `num_rows` rows for which an expression is true, in the order of the parts, which are read
        until there are enough. Fields of structs are columns: `error.kind`. `kinds`: none but rows with such errors, of
        all kinds where it is empty.

        Raises: WhereError where it is no expression, or names no column of the output.
        """
        from batchloom.pipelines.selection.grammar import parse
        from batchloom.pipelines.selection.meaning import check_names, expression_of, mask_of

        tree, found = None if where is None else parse(where), list[Row]()
        for record in self.records:
            if len(found) == num_rows:
                break
            there = record.errors_by_kind
            if kinds is not None and not (set(kinds) & set(there) if kinds else there):
                continue
            table = self.read(record.part, lambda part, record=record: part.first_rows(record.num_rows))  # type: ignore[misc]
            if table is None or not table.num_rows:
                continue
            table = self._typed(table)
            rows = _with_fields(table)
            mask = pa.chunked_array([pa.repeat(True, len(rows))])
            if where is not None and tree is not None:
                check_names(where, tree, rows.column_names)
                mask = mask_of(rows, expression_of(where, tree, rows.schema))
            if kinds is not None:
                is_asked = pc.is_in(rows["error.kind"], pa.array(kinds, pa.string())) if kinds else None
                mask = pc.and_(mask, pc.is_valid(rows["error"]) if is_asked is None else is_asked)
            found += rows_of(table.filter(mask).slice(0, num_rows - len(found)))
        return found

    def _typed(self, table: pa.Table) -> pa.Table:
        """Return rows with the types of columns that hold nothing but nulls: JSON does not tell these."""
        fields = [
            field.with_type(self._types.get(field.name, field.type)) if pa.types.is_null(field.type) else field
            for field in table.schema
        ]
        return table.cast(pa.schema(fields))

    @cached_property
    def _types(self) -> dict[str, pa.DataType]:
        """Of the output's own columns, and of all where it is finished."""
        types = {field.name: field.type for field in LEDGER_FIELDS}
        try:
            content = self.store.read(ledger.COLUMNS)
            return types | {field.name: field.type for field in pq.read_schema(pa.BufferReader(content))}
        except (FileNotFoundError, pa.ArrowException, OSError):  # readers of JSON Lines want it, and it is not checked
            return types

    def read(self, part: str, what: Callable[[PartFile], Found]) -> Found | None:
        """Return `what` of a part; None, and a warning in the log, where the part cannot be read."""
        if part not in self.there:
            log.warning("%s is missing. batchloom verify says more.", part)
            return None
        return _read(self.store, part, what)


def look(output: str, storage_options: Mapping[str, Any] | None = None) -> View:
    """Read an output folder's records.

    Raises:
        OutputError: no Batchloom job has written there.
    """
    store = Store(output, storage_options or {})
    found = ledger.look(store)
    manifest = ledger.read_manifest(store) if found.is_closed else None
    if manifest is not None:
        kept, settings = _kept(manifest.layout_of), section(manifest.fingerprint_of, "task_options")
        return View(store, _told(manifest.job), manifest, manifest.parts, found.parts, kept, settings)

    def record_of(part: str) -> PartRecord | None:
        return _read(store, part, lambda file: file.footer(found.parts[part].size).record)

    known, unknown = ledger.known_parts(store, found, filter(is_part_name, found.parts))
    with ThreadPoolExecutor(READ_THREADS) as pool:
        read = [record for record in pool.map(record_of, unknown) if record is not None]
    records = _once(Register.joined([known, Register.of(read)]).sorted())
    if found.job is None and not records:
        raise OutputError(f"{output} holds no batchloom output.{ledger.deeper(found)} A job creates it at its start.")
    told = _told(found.job.job if found.job else {})
    kept = _kept(found.job.layout_of if found.job else {})
    settings = section(found.job.fingerprint_of, "task_options") if found.job else {}
    return View(store, told, None, records, found.parts, kept, settings, _num_rows_answered(found))


def _kept(layout_of: Mapping[str, Any]) -> tuple[str, ...]:
    kept = layout_of.get("keep_columns")
    named = [one for one in kept if isinstance(one, list) and one] if isinstance(kept, list) else []
    return tuple(str(name) for name, *_ in named)


def section(job: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a job's record; an empty one where it has none."""
    found = job.get(name)
    return found if isinstance(found, Mapping) else {}


def _once(records: Register) -> Register:
    """Return one record of each part: while a job writes parts in another format they may be there in both."""
    keys = [key_of(part) for part in records.table["part"].to_pylist()]
    place = {key: row for row, key in enumerate(keys)}
    return records.chosen([place[key] == row for row, key in enumerate(keys)])


def _num_rows_answered(found: ledger.Found) -> int:
    """Return the rows in files of answers whose part is not written."""
    written = set(map(key_of, found.parts))
    return sum(answers.num_rows_in(names) for folder, names in found.answers.items() if folder not in written)


def _told(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the job with a text for its task and its model: parts do not tell them where job.json is lost."""
    unknown = {name: f"unknown {name}" for name in ("task", "model") if not isinstance(job.get(name), str)}
    return {**job, **unknown}


def spread(records: Sequence[PartRecord], most: int) -> list[PartRecord]:
    """Return at most `most` of the records, evenly spaced."""
    num_chosen = min(len(records), most)
    return [records[index * len(records) // num_chosen] for index in range(num_chosen)]


def chosen_columns(rows: Sequence[Row], asked: Sequence[str] | None = None) -> list[str]:
    """Return the columns to show: those asked for, or all but the ledger's (token counts, finish reason, error).

    Raises:
        ConfigError: a column that was asked for is not in the output.
    """
    there = list(rows[0]) if rows else []
    if asked is None:
        ledger_names = {field.name for field in LEDGER_FIELDS}
        return [name for name in there if name not in ledger_names]
    missing = [name for name in asked if name not in there]
    if missing and there:
        raise ConfigError(f"--columns: {', '.join(missing)} not in the output. It has: {', '.join(there)}.")
    return list(asked)


def _read(store: Store, part: str, what: Callable[[PartFile], Found]) -> Found | None:
    try:
        return what(PartFile.of(store, part))
    except Exception as error:  # damage and stores have many errors, and one part's must not hide the others
        log.warning("%s cannot be read: %s: %s. batchloom verify says more.", part, type(error).__name__, error)
        return None


def _with_fields(table: pa.Table) -> pa.Table:
    """Return the table with columns for the fields of its structs, at any depth."""
    flat = table
    while flat.num_columns and any(pa.types.is_struct(field.type) for field in flat.schema):
        flat = flat.flatten()
        new = [name for name in flat.column_names if name not in table.column_names]
        table = pa.table([*table.columns, *(flat[name] for name in new)], names=[*table.column_names, *new])
    return table


def rows_of(table: pa.Table) -> list[Row]:
    """Return the rows of a table. Bytes that are no text are said to be that."""
    return [
        {name: _value(column[row]) for name, column in zip(table.column_names, table.columns, strict=True)}
        for row in range(table.num_rows)
    ]


def _value(cell: pa.Scalar) -> Any:
    """Convert a cell. A kept string column is copied byte for byte, so it can hold what is not UTF-8."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return NOT_UTF8
