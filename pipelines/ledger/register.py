"""A register: the records of many parts as one Arrow table, so that a million of them fit in memory and in a file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, overload

import pyarrow as pa

from batchloom.pipelines.arrow_functions import pc
from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.ledger.sealed import Sealed, sealed
from batchloom.pipelines.planning.spans import Span

_COUNTED = pa.list_(pa.struct([("kind", pa.string()), ("count", pa.int64())]))
_SPANS = pa.list_(
    pa.struct([("shard", pa.string()), ("identity", pa.string()), ("start", pa.int64()), ("stop", pa.int64())])
)
SCHEMA = pa.schema(
    [
        ("part", pa.string()),
        ("spans", _SPANS),
        *((name, pa.int64()) for name in ("num_rows", "num_errors", "num_input_tokens", "num_output_tokens")),
        ("num_truncated_tokens", pa.int64()),
        ("errors_by_kind", _COUNTED),
        ("degenerate", _COUNTED),
        ("layout", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("version", pa.string()),
    ]
)
_SUMS = {
    "rows": "num_rows",
    "errors": "num_errors",
    "input_tokens": "num_input_tokens",
    "output_tokens": "num_output_tokens",
    "truncated_tokens": "num_truncated_tokens",
    "bytes": "bytes",
}
_BATCH = 4096  # records that are Python objects at the same time, while all are walked through


class Register(Sequence[PartRecord]):
    """Records of parts. Two registers are equal where their records are, which do not compare versions."""

    def __init__(self, table: pa.Table) -> None:
        """`table`: of SCHEMA."""
        self.table = table

    @staticmethod
    def of(records: Iterable[PartRecord]) -> "Register":
        return Register(pa.Table.from_pylist([_row(record) for record in records], SCHEMA))

    @staticmethod
    def joined(registers: Iterable["Register"]) -> "Register":
        return Register(pa.concat_tables([SCHEMA.empty_table(), *(one.table for one in registers)]))

    @staticmethod
    def read(content: bytes) -> "Register":
        """Read what `to_bytes` made. Raises: ValueError where it is not that, byte for byte."""
        file = Sealed.of(content)
        names = file.metadata.schema.to_arrow_schema().names
        if names != SCHEMA.names:
            raise ValueError(f"its columns are {', '.join(names)}")
        return Register(file.table(SCHEMA))

    def to_bytes(self) -> bytes:
        return sealed(self.table, {})

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> PartRecord: ...
    @overload
    def __getitem__(self, index: slice) -> "Register": ...
    def __getitem__(self, index: int | slice) -> "PartRecord | Register":
        if isinstance(index, slice):
            return self.rows(range(*index.indices(len(self))))
        (row,) = self.table.slice(range(len(self))[index], 1).to_pylist()
        return _record(row)

    def __iter__(self) -> Iterator[PartRecord]:
        for start in range(0, len(self), _BATCH):
            yield from map(_record, self.table.slice(start, _BATCH).to_pylist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Register):
            return NotImplemented
        return bool(self.table.drop_columns(["version"]).equals(other.table.drop_columns(["version"])))

    __hash__ = None  # type: ignore[assignment]  # as of any container

    def spans(self) -> Iterator[list[Span]]:
        """Yield the spans of each part."""
        for batch in self.table.select(["spans"]).to_batches(_BATCH):
            yield from ([Span(**span) for span in spans] for spans in batch["spans"].to_pylist())

    def sorted(self) -> "Register":
        """Return the records in the order of their first rows."""
        first = pc.list_element(self.table["spans"], 0)
        keys = pa.table({name: pc.struct_field(first, name) for name in ("shard", "start")})
        return Register(self.table.take(pc.sort_indices(keys, [("shard", "ascending"), ("start", "ascending")])))

    def rows(self, numbers: Sequence[int]) -> "Register":
        """Return the records of these numbers; of all in their order, as a resumed job asks for, nothing is copied."""
        if [*numbers] == [*range(len(self))]:
            return self
        return Register(self.table.take(pa.array(numbers, pa.int64())))

    def chosen(self, is_chosen: Sequence[bool]) -> "Register":
        return Register(self.table.filter(pa.array(is_chosen, pa.bool_())))

    def totals(self) -> dict[str, int]:
        """Return the sums of the parts' counts."""
        sums = {name: pc.sum(self.table[column]).as_py() or 0 for name, column in _SUMS.items()}
        shards = pc.count_distinct(pc.struct_field(pc.list_flatten(self.table["spans"]), "shard")).as_py()
        spans = pc.list_flatten(self.table["spans"])
        covered = pc.subtract(pc.struct_field(spans, "stop"), pc.struct_field(spans, "start"))
        left_out = (pc.sum(covered).as_py() or 0) - sums["rows"]  # by a selection
        return {"shards": shards, "parts": len(self), "ok": sums["rows"] - sums["errors"], "left_out": left_out, **sums}

    def errors_by_kind(self) -> dict[str, int]:
        return self._added("errors_by_kind")

    def degenerate(self) -> dict[str, int]:
        return self._added("degenerate")

    def _added(self, name: str) -> dict[str, int]:
        counts = pc.list_flatten(self.table[name])
        pairs = pa.table({part: pc.struct_field(counts, part) for part in ("kind", "count")})
        summed = pairs.group_by("kind").aggregate([("count", "sum")]).sort_by("kind")
        return dict(zip(summed["kind"].to_pylist(), summed["count_sum"].to_pylist(), strict=True))


def _row(record: PartRecord) -> dict[str, Any]:
    row = asdict(record)
    for name in ("errors_by_kind", "degenerate"):
        row[name] = [{"kind": kind, "count": count} for kind, count in sorted(row[name].items())]
    return row


def _record(row: dict[str, Any]) -> PartRecord:
    counts = {name: {one["kind"]: one["count"] for one in row[name]} for name in ("errors_by_kind", "degenerate")}
    return PartRecord(**{**row, **counts, "spans": tuple(Span(**span) for span in row["spans"])})
