"""Read turns stretches of units into Work with rows. A unit that cannot be read goes on as one that failed."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

import pyarrow as pa

from batchloom.pipelines.errors import JobError
from batchloom.pipelines.planning.shards import Shard, sources_of
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.planning.units import Size, Unit
from batchloom.pipelines.stages.choose import Choose, joined
from batchloom.pipelines.stages.reader import Reader
from batchloom.pipelines.stages.work import Work
from batchloom.pipelines.telemetry.measures import STAGES, timed

STRETCH_ROWS = 1 << 17  # rows that one read task goes through at most, in whole row groups


@dataclass
class Stretch:
    """Units that one task reads, one after the other."""

    sources: dict[str, Source] = field(default_factory=dict)
    """Of their shards, by name."""
    units: list[Unit] = field(default_factory=list)

    def to_json(self) -> str:
        number = {name: index for index, name in enumerate(self.sources)}
        units = [
            [
                unit.part,
                unit.ranges,
                [[number[span.shard], span.start, span.stop] for span in unit.spans],
                unit.is_whole,
            ]
            for unit in self.units
        ]
        return json.dumps([[asdict(source) for source in self.sources.values()], units])

    @staticmethod
    def from_json(text: str) -> "Stretch":
        described, units = json.loads(text)
        sources = [Source.from_json(values) for values in described]
        return Stretch(
            {source.name: source for source in sources},
            [
                Unit(
                    part=part,
                    ranges=tuple((start, stop) for start, stop in ranges),
                    spans=tuple(Span(sources[i].name, sources[i].identity, start, stop) for i, start, stop in spans),
                    is_whole=is_whole,
                )
                for part, ranges, spans, is_whole in units
            ],
        )


def stretches(units: Iterable[Unit], shards: Mapping[str, Shard], least_units: int) -> Iterator[Stretch]:
    """Yield units in groups of at least `least_units` that share no row group with each other.

    Units of a sliced row group are read in one pass, so that it is decoded once and not once for each slice.
    """
    gathered, num_rows = list[Unit](), 0
    for unit in units:
        first = unit.spans[0]
        is_full = len(gathered) >= least_units and shards[first.shard].is_boundary(first.start)
        if gathered and (is_full or num_rows > max(STRETCH_ROWS, least_units)):
            yield _stretch(gathered, shards)
            gathered, num_rows = [], 0
        gathered.append(unit)
        num_rows += unit.num_rows
    if gathered:
        yield _stretch(gathered, shards)


def _stretch(units: list[Unit], shards: Mapping[str, Shard]) -> Stretch:
    return Stretch(sources_of((span for unit in units for span in unit.spans), shards), units)


@dataclass(frozen=True)
class Read:
    """Callable that Ray maps over stretches: one Work batch per unit out."""

    reader: Reader
    """Of the columns that the task and the selection read."""
    choose: Choose | None = None
    """None: all rows are answered."""
    most: Size | None = None
    """Of a unit, where units of few chosen rows are joined."""

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        works = self.works(Stretch.from_json(batch["stretch"][0].as_py()))
        for work, seconds in timed(works if self.most is None else joined(works, self.most)):
            yield work.measured({STAGES["read"]: seconds}).to_batch()

    def works(self, stretch: Stretch) -> Iterator[Work]:
        """Yield the units of a stretch with their rows, or as ones that failed."""
        read = self.reader.tables(stretch.sources, [unit.spans for unit in stretch.units])
        for unit, rows in zip(stretch.units, read, strict=True):
            sources = {span.shard: stretch.sources[span.shard] for span in unit.spans}
            if self.choose is not None and not isinstance(rows, JobError):
                chosen = self.choose.chosen(sources, unit.spans, rows)
                rows, mask = (chosen, None) if isinstance(chosen, JobError) else chosen
                unit = replace(unit, chosen=mask)
            if isinstance(rows, JobError):
                yield Work(unit=unit, failure=str(rows))
            else:
                yield Work(unit=unit, sources=sources if unit.is_whole else {}, rows=rows)
