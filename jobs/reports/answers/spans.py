"""What answers to questions add up to."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from batchloom.jobs.reports.answers.base import SCORES, Answers, frequent
from batchloom.jobs.reports.blocks import Bars, Block, Share, Table
from batchloom.jobs.reports.numbers import Numbers, Tally, histogram, joined, numbers

NO_ANSWER = "(no answer)"


class Spans(Answers):
    """Answers to questions: how many there are, which ones are frequent, how sure they are."""

    schema = pa.schema([("answer", pa.string()), ("score", pa.float32())])

    def __init__(self) -> None:
        self._texts = Tally()
        self._scores, self._lengths = list[Numbers](), list[Numbers]()
        self._num_empty = 0

    def add(self, rows: pa.Table) -> None:
        given = pc.not_equal(rows["answer"], "")
        answers = rows.filter(given)["answer"]
        self._num_empty += rows.num_rows - answers.length()
        self._texts.add(answers)
        self._lengths.append(pc.utf8_length(answers).to_numpy())
        self._scores.append(numbers(rows["score"]))

    def blocks(self) -> Iterator[Block]:
        total = self._texts.total + self._num_empty
        if not total:
            return
        counts = {"answer": self._texts.total, NO_ANSWER: self._num_empty}
        rows = tuple((found, count, Share(count / total)) for found, count in counts.items())
        yield Bars(Table("Rows with an answer", ("found", "rows", "share"), rows), "rows")
        yield frequent("Most frequent answers", self._texts, "answer")
        if found := histogram("Scores of answers", "score", joined(self._scores), within=SCORES):
            yield found
        if found := histogram("Lengths of answers", "characters", joined(self._lengths), "answers"):
            yield found

    def words(self) -> dict[str, str]:
        return {"Answers": f"{self._texts.total:,} found, {self._num_empty:,} rows without one"}
