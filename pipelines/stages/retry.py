"""Retry computes rows again that have errors in finished parts, and leaves all other rows of those parts as they are.

Such a unit goes through all stages once more. The rows to leave come as nulls with an error of their own, so that no
task asks the model about them, and in the end those of the old part take their places. Rows keep their numbers, and
so their seeds. The new part replaces the old one under its name, as atomically as any part is written.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchloom.pipelines.errors import JobError
from batchloom.pipelines.fields import ERROR_FIELD, ERROR_TYPE
from batchloom.pipelines.ledger.parts import FOOTER_KEY
from batchloom.pipelines.stages.work import Work
from batchloom.pipelines.storage import Store

LEFT = {"stage": "read", "kind": "batchloom:left", "message": "this row is left as it is in the old part"}


@dataclass(frozen=True)
class Retry:
    """Which rows of which parts are computed again."""

    kinds: frozenset[str]
    """Of errors; empty for all."""
    hashes: Mapping[str, str]
    """The SHA-256 of each part with such rows, by name."""
    store: Store
    fingerprint: str

    def narrow(self, work: Work) -> Work:
        """Return a unit with its old part and without the rows to leave; a unit that has no such part as it is.

        Raises: JobError where the part is not the one that was found when the job began.
        """
        name = work.unit.part_name(self.fingerprint)
        if name not in self.hashes:
            return work
        content = self.store.read(name)
        if hashlib.sha256(content).hexdigest() != self.hashes[name]:
            raise JobError(f"{name} was replaced after the job began. Run the job again.")
        file = pq.ParquetFile(pa.BufferReader(content))
        earlier = file.read().replace_schema_metadata({FOOTER_KEY: file.metadata.metadata[FOOTER_KEY]})
        is_left = [not self._is_chosen(kind) for kind in pc.struct_field(earlier["error"], "kind").to_pylist()]
        rows = work.rows.take(pa.array([None if left else row for row, left in enumerate(is_left)], pa.int64()))
        errors = [LEFT if left else error for left, error in zip(is_left, rows["error"].to_pylist(), strict=True)]
        place = rows.column_names.index("error")
        return replace(work, rows=rows.set_column(place, ERROR_FIELD, pa.array(errors, ERROR_TYPE)), earlier=earlier)

    def _is_chosen(self, kind: str | None) -> bool:
        return kind is not None and (not self.kinds or kind in self.kinds)


def merged(earlier: pa.Table, computed: pa.Table) -> pa.Table:
    """Return the rows that were computed, and in place of those that were left the old part's."""
    kinds = pc.struct_field(computed["error"], "kind").to_pylist()
    order = [row if kind == LEFT["kind"] else len(kinds) + row for row, kind in enumerate(kinds)]
    both = pa.concat_tables([earlier.cast(computed.schema), computed]).unify_dictionaries()
    return both.take(pa.array(order, pa.int64()))
