"""What generated texts add up to: their lengths beside those of their sources, how they ended, frequent ones."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from batchloom.jobs.reports.answers.base import Answers, counted, frequent
from batchloom.jobs.reports.blocks import Block, Cell, Facts, Line, Share
from batchloom.jobs.reports.numbers import Numbers, Tally, first_of, histogram, joined, round_width


class Texts(Answers):
    """Generated texts: their lengths beside those of their sources, how they ended, which ones are frequent."""

    def __init__(self, name: str) -> None:
        """`name`: of the column; its values are texts, or lists whose first text counts."""
        self._name = name
        self.schema = pa.schema([(name, pa.string())])
        self._texts, self._ends = Tally(), Tally()
        self._sources, self._lengths = list[Numbers](), list[Numbers]()

    def add(self, rows: pa.Table) -> None:
        texts = rows[self._name]
        self._texts.add(first_of(texts) if pa.types.is_list(texts.type) else texts)
        self._ends.add(rows["finish_reason"])
        self._sources.append(rows["num_input_tokens"].to_numpy())
        self._lengths.append(rows["num_output_tokens"].to_numpy())

    def blocks(self) -> Iterator[Block]:
        sources, lengths = joined(self._sources), joined(self._lengths)
        if not len(lengths):
            return
        if found := histogram("Lengths of answers", "tokens", lengths):
            yield found
        if against := _against(sources, lengths):
            yield against
        yield Facts(self._facts(sources, lengths), "Answers and their sources")
        yield frequent("Most frequent answers", self._texts, "answer")
        if self._ends.total:
            yield counted("How answers ended", self._ends, header="finish reason")

    def words(self) -> dict[str, str]:
        lengths = joined(self._lengths)
        return {"Answers": f"median {np.median(lengths):,.0f} tokens, {self._distinct()}"} if len(lengths) else {}

    def _facts(self, sources: Numbers, lengths: Numbers) -> dict[str, Cell]:
        has_source = sources > 0
        ratios = lengths[has_source] / sources[has_source]
        return {
            "median answer": f"{np.median(lengths):,.0f} tokens",
            "median source": f"{np.median(sources):,.0f} tokens",
            "answer over source, median": Share(np.median(ratios)) if len(ratios) else None,
            "answers longer than their source": int((lengths > sources).sum()),
            "different answers": self._distinct(),
        }

    def _distinct(self) -> str:
        count = f"{len(self._texts.counts):,}" if self._texts.is_exact else f"more than {len(self._texts.counts):,}"
        return f"{count} different of {self._texts.total:,}"


def _against(sources: Numbers, lengths: Numbers) -> Line | None:
    """Return answers' lengths by those of their sources; None where there are too few of these."""
    if len(np.unique(sources)) < 3:
        return None
    width = round_width(max(float(np.quantile(sources, 0.99)), 1.0) / 16)
    points, band = [], []
    bins = (sources // width).astype(np.int64)
    for place in np.unique(bins):
        is_own = bins == place
        own = lengths[is_own]
        if len(own) >= max(3, len(lengths) // 1000):
            low, middle, high = np.quantile(own, [0.25, 0.5, 0.75])
            points.append((float(np.median(sources[is_own])), float(middle)))
            band.append((float(low), float(high)))
    if len(points) < 2:
        return None
    note = "The line is the median answer to sources of a length; half of the answers lie in the band."
    across, upwards = "source, tokens", "answer, tokens"
    return Line("Answers by the lengths of their sources", across, upwards, tuple(points), tuple(band), note)
