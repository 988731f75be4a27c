"""Answers: the columns of tasks that generate, which are texts and, on request, their scores. It knows no task.

A row with several pieces, such as the chunks of a document, has one answer of all of them; a row with several samples
has a list of answers, best first.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from batchloom.pipelines.tasks.base import Answered
from batchloom.pipelines.tasks.chunks import joined


@dataclass(frozen=True)
class AnswerColumns:
    """The column of a task's texts, and the two of their scores."""

    name: str
    """Of the column with the texts."""
    is_list: bool
    """Whether rows have several answers."""
    has_scores: bool

    def fields(self) -> list[pa.Field]:
        """Return the columns: of values, or of lists of them."""
        kinds = {self.name: pa.string()}
        if self.has_scores:
            kinds |= {"sequence_score": pa.float32(), "token_log_probs": pa.list_(pa.float32())}
        return [pa.field(name, pa.list_(kind) if self.is_list else kind) for name, kind in kinds.items()]

    def of(self, answered: Answered, tokenizer: Any) -> list[pa.Array]:
        """Return the values of `fields`, null for rows without results.

        Of several pieces the texts are joined by spaces, the tokens follow one another, and the score is the mean.
        """
        results = answered.results
        texts = tokenizer.decode_batch(whole_answers(results))
        numbers = (results[name].to_pylist() for name in ("row", "sample", "score", "values"))
        pieces: dict[int, dict[int, list[tuple[str, float, list[float]]]]] = {}
        for text, row, sample, score, log_probs in zip(texts, *numbers, strict=True):
            pieces.setdefault(row, {}).setdefault(sample, []).append((text, score, log_probs or []))
        answers = {row: [_answer(own) for own in samples.values()] for row, samples in pieces.items()}
        columns = []
        for place, field in enumerate(self.fields()):
            values = {row: [answer[place] for answer in own] for row, own in answers.items()}
            column = [values.get(row) for row in range(answered.num_rows)]
            columns.append(pa.array(column if self.is_list else [own and own[0] for own in column], field.type))
        return columns


def whole_answers(results: pa.Table) -> list[list[int]]:
    """Return the tokens of each answer: those that it was made to begin with, and those that were generated."""
    columns = (results[name].to_pylist() for name in ("answer_prefix", "token_ids"))
    return [[*(prefix or ()), *own] for prefix, own in zip(*columns, strict=True)]


def _answer(pieces: list[tuple[str, float, list[float]]]) -> tuple[str, float, list[float]]:
    """Return what the pieces of a row are together: text, score and the tokens' log-probabilities."""
    if len(pieces) == 1:
        return pieces[0]
    texts, scores, log_probs = zip(*pieces, strict=True)
    return joined(texts), sum(scores) / len(scores), [one for own in log_probs for one in own]
