"""What the targets that scoring chose among add up to."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom.jobs.reports.answers.base import Answers, counted, most
from batchloom.jobs.reports.blocks import Bars, Block, Facts
from batchloom.jobs.reports.numbers import Numbers, Tally, histogram, joined, numbers


class Choices(Answers):
    """Which of a row's targets is the best, and how far it is from the second."""

    schema = pa.schema(
        [
            ("log_likelihoods", pa.list_(pa.float64())),
            ("num_scored_tokens", pa.list_(pa.int32())),
            ("best", pa.int32()),
        ]
    )

    def __init__(self) -> None:
        self._best = Tally()
        self._leads = list[Numbers]()
        self._num_targets = self._num_tokens = 0

    def add(self, rows: pa.Table) -> None:
        self._best.add(pc.cast(rows["best"].combine_chunks(), pa.string()))
        self._num_targets += pc.sum(pc.list_value_length(rows["log_likelihoods"])).as_py() or 0
        self._num_tokens += pc.sum(pc.list_flatten(rows["num_scored_tokens"])).as_py() or 0
        possible = [[one for one in own if one is not None] for own in rows["log_likelihoods"].to_pylist()]
        several = [own for own in possible if len(own) > 1]
        self._leads.append(numbers(pa.array([float(np.diff(np.sort(own)[-2:])[0]) for own in several], pa.float64())))

    def blocks(self) -> Iterator[Block]:
        if not self._best.total:
            return
        yield Bars(counted("Rows by best target", self._best, header="place in the list, from 0"), "rows")
        leads = joined(self._leads)
        if found := histogram("How far the likeliest target leads, in nats", "nats", leads):
            yield found
        facts = {"targets": self._num_targets, "scored tokens": self._num_tokens}
        yield Facts({**facts, "median lead": float(np.median(leads))} if len(leads) else facts)

    def words(self) -> dict[str, str]:
        return {"Best targets": most(self._best)} if self._best.total else {}
