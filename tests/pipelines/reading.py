"""Reads one shard in ranges of its rows, as units read it; what it cannot read is raised."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from batchloom.models.patience import Patience
from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.planning.spans import Range, Span
from batchloom.pipelines.planning.units import Size, cut
from batchloom.pipelines.stages.reader import Reader


class ShardReader:
    """A reader of one shard."""

    def __init__(
        self, shard: Shard, schema: pa.Schema, options: Mapping[str, Any], url: str, patience: Patience | None = None
    ) -> None:
        self.reader = Reader(schema.remove_metadata(), options, url, patience or Patience(), shard.format)
        self.shard = shard

    def tables(self, ranges: Sequence[Range]) -> Iterator[tuple[Range, pa.Table]]:
        """Yield each range with its rows. Raises: JobError, as the reader gives it."""
        source = self.shard.source_of(0, self.shard.num_rows)
        spans = [(Span(source.name, source.identity, *rows),) for rows in ranges]
        for rows, table in zip(ranges, self.reader.tables({source.name: source}, spans), strict=True):
            if isinstance(table, Exception):
                raise table
            yield rows, table


def ranges_of(shard: Shard, num_rows: int) -> list[Range]:
    """Return the rows of a shard in ranges of so many."""
    return list(cut(shard.pieces(0, shard.num_rows), Size(num_rows, 1 << 60)))
