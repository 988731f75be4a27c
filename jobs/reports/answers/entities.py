"""What entities add up to: their kinds, their words, how many a row has."""

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from batchloom.jobs.reports.answers.base import MAX_TEXTS, SCORES, Answers, counted, inexact, most
from batchloom.jobs.reports.blocks import Bars, Block, Cell, Facts, Share, Table
from batchloom.jobs.reports.numbers import Numbers, Tally, histogram, joined, numbers


class Entities(Answers):
    """Entities by kind."""

    def __init__(self) -> None:
        entity = pa.struct([("entity_group", pa.string()), ("score", pa.float32()), ("word", pa.string())])
        self.schema = pa.schema([("entities", pa.list_(entity))])
        self._kinds, self._words = Tally(), Tally()
        self._sums = Counter[str]()
        self._of_rows, self._scores = list[Numbers](), list[Numbers]()

    def add(self, rows: pa.Table) -> None:
        self._of_rows.append(pc.fill_null(pc.list_value_length(rows["entities"]), 0).to_numpy())
        entities = pc.list_flatten(rows["entities"])
        kind, score, word = (pc.struct_field(entities, name) for name in ("entity_group", "score", "word"))
        self._kinds.add(kind)
        self._words.add(pc.binary_join_element_wise(kind, word, "\x1f"))
        self._scores.append(numbers(score))
        sums = pa.table({"kind": kind, "score": score}).group_by("kind").aggregate([("score", "sum")])
        self._sums.update(dict(zip(sums["kind"].to_pylist(), sums["score_sum"].to_pylist(), strict=True)))

    def blocks(self) -> Iterator[Block]:
        of_rows = joined(self._of_rows)
        if not len(of_rows):
            return
        yield Bars(counted("Entities by kind", self._kinds, self._mean, "entities", "kind"), "entities")
        rows = tuple(_word_and_kind(text, count) for text, count in self._words.most_common(2 * MAX_TEXTS))
        yield Table("Most frequent entities", ("word", "kind", "entities"), rows, inexact(self._words))
        if found := histogram("Entities in a row", "entities", of_rows):
            yield found
        if found := histogram("Scores of entities", "score", joined(self._scores), "entities", SCORES):
            yield found
        none = int((of_rows == 0).sum())
        share = Share(none / len(of_rows))
        facts = {"entities": self._kinds.total, "rows without any": none, "share of rows": share}
        yield Facts(facts, "Entities and rows")

    def words(self) -> dict[str, str]:
        return {"Entities": most(self._kinds) or "none"}

    def _mean(self, kind: str, count: int) -> tuple[Cell, ...]:
        return (self._sums[kind] / count,)


def _word_and_kind(text: str, count: int) -> tuple[Cell, ...]:
    kind, _, word = text.partition("\x1f")
    return word, kind, count
