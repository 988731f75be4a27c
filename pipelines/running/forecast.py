"""A forecast: what a job's rows will be like, from some of them, read and tokenized in this process."""

import bisect
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

import pyarrow.compute as pc

from batchloom import models
from batchloom.pipelines.errors import InputError
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.planning.shards import sources_of
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.running.reading import read_of
from batchloom.pipelines.stages.read import Stretch
from batchloom.pipelines.stages.tokenize import Tokenize
from batchloom.pipelines.stages.work import Work

PLACES = 16  # of the input that are looked at: each costs the row group that it lies in


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Counts over some rows of a job. Errors that only a model finds are not among them."""

    num_rows: int
    """Of the whole job."""
    num_looked_at: int
    num_chosen: int
    """Of those, that a selection does not leave out."""
    num_input_tokens: int
    """Of all rows, as a manifest counts them."""
    num_asked_tokens: int
    """That the model is asked: of rows that say the same in one place once, and of windows that overlap each."""
    num_truncated_tokens: int
    errors_by_kind: Mapping[str, int]
    seconds: float
    """For reading and tokenizing, of one process."""

    @staticmethod
    def of(job: JobPlan, num_rows: int) -> "Forecast":
        """Look at about `num_rows` rows of evenly spread places.

        Raises: InputError where they cannot be read; ModelError where the tokenizer cannot be used.
        """
        began = time.perf_counter()
        spans = list(places(job, num_rows))
        works = _prepared(job, spans)
        rows = [work.rows for work in works]
        kinds = Counter(error["kind"] for table in rows for error in table["error"].to_pylist() if error is not None)
        return Forecast(
            num_rows=job.num_rows,
            num_looked_at=sum(span.num_rows for span in spans),
            num_chosen=sum(table.num_rows for table in rows),
            num_input_tokens=sum(pc.sum(table["num_input_tokens"]).as_py() or 0 for table in rows),
            num_asked_tokens=sum(map(_num_asked, works)),
            num_truncated_tokens=sum(pc.sum(table["num_truncated_tokens"]).as_py() or 0 for table in rows),
            errors_by_kind=dict(kinds),
            seconds=time.perf_counter() - began,
        )

    def expected(self, count: int) -> int:
        """Return what a count over the rows that were looked at makes for the whole job."""
        return round(count * self.num_rows / max(self.num_looked_at, 1))


def places(job: JobPlan, num_rows: int) -> Iterator[Span]:
    """Yield spans of rows, evenly spread over the input, that do not overlap."""
    ends = list(accumulate(shard.num_rows for shard in job.shards))
    num_places = min(PLACES, num_rows, job.num_rows)
    for place in range(num_places):
        start, end = (number * job.num_rows // num_places for number in (place, place + 1))
        own = (place + 1) * num_rows // num_places - place * num_rows // num_places
        stop = min(start + own, end)
        while start < stop:
            number = bisect.bisect_right(ends, start)
            source, before = job.shards[number].source, ends[number] - job.shards[number].num_rows
            last = min(stop, ends[number])
            yield Span(source.name, source.identity, start - before, last - before)
            start = last


def _prepared(job: JobPlan, spans: list[Span]) -> list[Work]:
    """Return the spans, read, chosen and tokenized. Raises: InputError, ModelError."""
    units = [Unit(part="", ranges=((0, span.num_rows),), spans=(span,), is_whole=False) for span in spans]
    engine = job.config.engine
    tokenize = Tokenize(job.task, job.checkpoint.pinned, engine.max_batch_tokens, engine.compute_once)
    tokenizer = models.load_tokenizer(job.checkpoint.pinned)
    works = []
    for work in read_of(job).works(Stretch(sources_of(spans, job.shards_by_name), units)):
        if work.failure is not None:
            raise InputError(work.failure)
        works.append(tokenize.prepare(work, tokenizer))
    return works


def _num_asked(work: Work) -> int:
    assert work.requests is not None
    return pc.sum(pc.list_value_length(work.requests["token_ids"])).as_py() or 0
