"""What labels add up to: rows by best label, scores, labels above a threshold; and the fills of masks."""

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchloom.jobs.reports.answers.base import SCORES, Answers, counted, most
from batchloom.jobs.reports.blocks import Bars, Block, Cell, Facts, Share, Table
from batchloom.jobs.reports.numbers import Numbers, Tally, first_of, histogram, joined, numbers

SURE, UNSURE = 0.9, 0.5


class Classes(Answers):
    """The best label of each row, its score, and of independent labels those above a threshold."""

    def __init__(self, schema: Mapping[str, pa.DataType]) -> None:
        """`schema`: `label`, else the first of `labels`; `score`, else the first of `scores`; `labels_above`."""
        self.schema = pa.schema(list(schema.items()))
        self._labels, self._above = Tally(), Tally()
        self._sums = Counter[str]()
        self._scores = list[Numbers]()
        self._num_rows_above = 0

    def add(self, rows: pa.Table) -> None:
        names = rows.column_names
        labels = rows["label"].combine_chunks() if "label" in names else first_of(rows["labels"])
        scores = rows["score"].combine_chunks() if "score" in names else first_of(rows["scores"])
        if pa.types.is_struct(scores.type):
            scores = pc.struct_field(scores, "score")
        self._labels.add(labels)
        self._scores.append(numbers(scores).astype(np.float32))
        sums = pa.table({"label": labels, "score": scores}).group_by("label").aggregate([("score", "sum")])
        if self._labels.is_exact:
            self._sums.update(dict(zip(sums["label"].to_pylist(), sums["score_sum"].to_pylist(), strict=True)))
        if "labels_above" in names:
            self._above.add(pc.list_flatten(rows["labels_above"]))
            self._num_rows_above += pc.sum(pc.greater(pc.list_value_length(rows["labels_above"]), 0)).as_py() or 0

    def blocks(self) -> Iterator[Block]:
        scores = joined(self._scores)
        if not len(scores):
            return
        yield Bars(counted("Rows by best label", self._labels, self._mean), "rows")
        if self._above.total:
            note = f"{self._num_rows_above:,} of {self._labels.total:,} rows have a label above the threshold."
            above = counted("Labels above the threshold", self._above)
            yield Bars(Table(above.title, above.header, above.rows, note), "rows")
        is_probability = scores.min() >= 0 and scores.max() <= 1
        if found := histogram("Scores of the best label", "score", scores, within=SCORES if is_probability else None):
            yield found
        if is_probability:
            yield Facts(_certainty(scores), "How sure the model was")

    def words(self) -> dict[str, str]:
        return {"Labels": most(self._labels)} if self._labels.total else {}

    def _mean(self, label: str, count: int) -> tuple[Cell, ...]:
        return (self._sums[label] / count,) if self._labels.is_exact else (None,)


class Fills(Answers):
    """The best fill of each row's first mask."""

    def __init__(self) -> None:
        fill = pa.struct([("token_str", pa.string()), ("score", pa.float32()), ("sequence", pa.string())])
        self.schema = pa.schema([("fills", pa.list_(fill))])
        self._fills = Tally()
        self._scores = list[Numbers]()

    def add(self, rows: pa.Table) -> None:
        best = first_of(rows["fills"])
        self._fills.add(pc.coalesce(pc.struct_field(best, "token_str"), pc.struct_field(best, "sequence")))
        self._scores.append(numbers(pc.struct_field(best, "score")))

    def blocks(self) -> Iterator[Block]:
        if self._fills.total:
            yield Bars(counted("Rows by best fill", self._fills, header="fill"), "rows")
        scores = joined(self._scores)
        is_probability = len(scores) and scores.min() >= 0 and scores.max() <= 1
        if found := histogram("Scores of the best fill", "score", scores, within=SCORES if is_probability else None):
            yield found

    def words(self) -> dict[str, str]:
        return {"Fills": most(self._fills)} if self._fills.total else {}


def _certainty(scores: Numbers) -> dict[str, Cell]:
    return {
        "median score": float(np.median(scores)),
        f"rows of {SURE} and more": int((scores >= np.float32(SURE)).sum()),
        f"rows below {UNSURE}": int((scores < UNSURE).sum()),
        f"share below {UNSURE}": Share((scores < UNSURE).mean()),
    }
