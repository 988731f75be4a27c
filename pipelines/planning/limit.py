"""Fewer rows of shards by what is known without reading them: a limit takes the first rows of each shard, evenly, for a
job that is a trial of another; a selection leaves out files by their partitions."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.selection.selection import Selection


@dataclass(frozen=True)
class FirstRows(Shard):
    """A shard of which the first rows alone are there."""

    most: int = 0

    @cached_property
    def num_rows(self) -> int:
        return min(self.most, sum(self.row_groups))

    @cached_property
    def num_bytes(self) -> int:
        return sum(num_bytes for _, num_bytes in self.pieces(0, self.num_rows, with_kept=True))


def limited(shards: Sequence[Shard], limit: int | None) -> list[Shard]:
    """Return the shards with `limit` rows together: of each as many, but where some have fewer.

    Shards of 2, 50 and 90 rows at a limit of 20 give 2, 9 and 9.
    """
    if limit is None:
        return list(shards)
    left = limit
    shares = dict[str, int]()
    for number, shard in enumerate(sorted(shards, key=lambda shard: shard.num_rows)):
        shares[shard.name] = min(shard.num_rows, left // (len(shards) - number))
        left -= shares[shard.name]
    return [_first(shard, shares[shard.name]) for shard in shards]


def selected(shards: Sequence[Shard], selection: Selection) -> list[Shard]:
    """Return the shards, those without rows of which the selection chooses none by the values of their partitions."""
    return [_first(shard, 0) if selection.excludes(shard.source) else shard for shard in shards]


def words_for_left_out(shards: Sequence[Shard], limit: int | None) -> str:
    """Return a sentence on the rows that a limit leaves out of these shards; empty where it leaves out none."""
    num_rows = sum(shard.num_rows for shard in shards)
    if limit is None or limit >= num_rows:
        return ""
    return f"input.limit leaves out {num_rows - limit:,} of {num_rows:,} rows."


def _first(shard: Shard, most: int) -> Shard:
    if most == shard.num_rows:
        return shard
    return FirstRows(**{field.name: getattr(shard, field.name) for field in fields(Shard)}, most=most)
