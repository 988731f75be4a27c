"""Question answering: a question and a context in, the span of the context that answers it out, with its score.

Contexts longer than one window are read in overlapping windows; the best span of all windows is the answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchloom.pipelines.errors import ConfigError, RowError
from batchloom.pipelines.tasks.base import (
    Answered,
    ColumnKind,
    Prepared,
    Task,
    TaskSpec,
    refuse_generation,
    request_table,
    with_head,
)
from batchloom.pipelines.tasks.options import read_options
from batchloom.pipelines.tasks.pairs import PairTemplate
from batchloom.pipelines.tasks.spans import Span, best_span
from batchloom.pipelines.tasks.texts import no_tokens, unanswerable
from batchloom.pipelines.tasks.windows import window_size, windows

if TYPE_CHECKING:
    from batchloom.models import Encoded, SinglePass, Tokenizer

WINDOW_TOKENS = 384  # question and special tokens included: the length that these checkpoints are trained with
QUESTION_TOKENS = 64  # longer questions are truncated


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringOptions:
    """`task_options` of a question-answering job."""

    doc_stride: int = 128
    """Tokens of the context that neighbouring windows share."""
    max_answer_len: int = 15
    """The maximum number of tokens of an answer."""
    handle_impossible_answer: bool = False
    """Answer "" where the first token, whose score is that of no answer, has a better score than every span."""


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(Task):
    """The question-answering task; pipelines/tasks/base.py Task documents the methods."""

    question_column: str
    context_column: str
    options: QuestionAnsweringOptions
    window: int

    @classmethod
    def create(cls, spec: TaskSpec) -> "QuestionAnswering":
        refuse_generation(spec)
        options = read_options(spec.task, spec.options, QuestionAnsweringOptions)
        window = min(window_size(spec.checkpoint.max_positions), WINDOW_TOKENS)
        most = window - QUESTION_TOKENS - 8
        problems = []
        if options.doc_stride < 0 or (most > 0 and options.doc_stride > most):
            problems.append(f"task_options.doc_stride: is {options.doc_stride}, must be from 0 to {most}.")
        if spec.input.question_column == spec.input.context_column:
            problems.append(f"input: question_column and context_column are both {spec.input.context_column!r}.")
        if options.max_answer_len < 1:
            problems.append(f"task_options.max_answer_len: is {options.max_answer_len}, must be at least 1.")
        if problems:
            raise ConfigError("\n".join(problems))
        return cls(
            architecture=with_head(spec, "ForQuestionAnswering"),
            question_column=spec.input.question_column,
            context_column=spec.input.context_column,
            options=options,
            window=window,
        )

    def input_columns(self) -> Mapping[str, ColumnKind]:
        return {self.question_column: ColumnKind.TEXT, self.context_column: ColumnKind.TEXT}

    def output_fields(self) -> list[pa.Field]:
        return [
            pa.field("answer", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("start", pa.int32()),
            pa.field("end", pa.int32()),
        ]

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.options), "window": self.window}

    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: "Tokenizer") -> Prepared:
        errors: dict[int, RowError] = {}
        for column, texts in zip((self.context_column, self.question_column), reversed(columns), strict=True):
            errors |= unanswerable(texts, column)
        num_rows = len(columns[0])
        rows = [row for row in range(num_rows) if row not in errors]
        questions, contexts = ([column[row].as_py() for row in rows] for column in columns)
        question_ids = tokenizer.encode_batch(questions, add_special_tokens=False)
        num_input, num_truncated = np.zeros((2, num_rows), dtype=np.int32)
        template = PairTemplate.of(tokenizer)
        asked: list[tuple[int, int, list[int]]] = []
        noted: list[dict[str, Any]] = []
        for row, question, context, encoded in zip(
            rows, question_ids, contexts, tokenizer.encode_offsets(contexts), strict=True
        ):
            tokens = _Context.of(encoded)
            if not tokens.ids:
                errors[row] = no_tokens(self.context_column)
                continue
            room = self.window - template.num_tokens - min(len(question), QUESTION_TOKENS)
            if room <= self.options.doc_stride and len(tokens.ids) > room:
                errors[row] = _no_room(len(question), self.window, self.options.doc_stride)
                continue
            num_truncated[row] = max(len(question) - QUESTION_TOKENS, 0)
            for piece, (start, stop) in enumerate(windows(len(tokens.ids), room, self.options.doc_stride)):
                ids = template.fill(question[:QUESTION_TOKENS], tokens.ids[start:stop])
                asked.append((row, piece, ids))
                num_input[row] += len(ids)
                noted.append(
                    {
                        "row": row,
                        "piece": piece,
                        "text": context if piece == 0 else None,
                        "first": len(template.before) + min(len(question), QUESTION_TOKENS) + len(template.between),
                        "starts": tokens.starts[start:stop],
                        "ends": tokens.ends[start:stop],
                    }
                )
        return Prepared(request_table(asked), num_input, num_truncated, errors, pa.Table.from_pylist(noted, _NOTES))

    def ask(self, model: "SinglePass", token_ids: Sequence[Sequence[int]]) -> Mapping[str, pa.Array]:
        logits = [np.concatenate([start.numpy(), end.numpy()]) for start, end in model.spans(token_ids)]
        return {"values": pa.array(logits, pa.list_(pa.float32()))}

    def finish(self, answered: Answered, tokenizer: "Tokenizer") -> list[pa.Array]:  # noqa: ARG002
        answers: list[dict[str, Any]] = [{}] * answered.num_rows
        for row, in_windows in answered.pieces():
            answers[row] = self._best(in_windows)
        return [pa.array([answer.get(field.name) for answer in answers], field.type) for field in self.output_fields()]

    def _best(self, in_windows: Sequence[tuple[np.ndarray[Any, Any], Mapping[str, Any]]]) -> dict[str, Any]:
        """Return the best span over the windows of one row."""
        # Scores are probabilities: any span's is higher than -1, and no window's probability of no answer exceeds 1.
        best, nothing = Span(-1.0, 0, 0), 1.0
        text = in_windows[0][1]["text"]
        for values, note in in_windows:
            start_T, end_T = np.split(values, 2)
            context = range(note["first"], note["first"] + len(note["starts"]))
            limits = self.options.max_answer_len, self.options.handle_impossible_answer
            found, no_answer = best_span(start_T, end_T, context, *limits)
            nothing = min(nothing, no_answer)
            if found.score > best.score:
                start = note["starts"][found.start - note["first"]]
                best = Span(found.score, start, note["ends"][found.stop - 1 - note["first"]])
        if self.options.handle_impossible_answer and nothing > best.score:
            return {"answer": "", "score": nothing, "start": 0, "end": 0}
        return {"answer": text[best.start : best.stop], "score": best.score, "start": best.start, "end": best.stop}


@dataclass(frozen=True)
class _Context:
    """A context's tokens, with the characters of the whole word of each, because answers are whole words."""

    ids: list[int]
    starts: list[int]
    ends: list[int]

    @staticmethod
    def of(encoded: "Encoded") -> "_Context":
        own = [i for i, sequence in enumerate(encoded.sequence_ids) if sequence is not None]
        starts: dict[int | None, int] = {}
        ends: dict[int | None, int] = {}
        for i in own:
            word = encoded.word_ids[i]
            starts.setdefault(word, encoded.offsets[i][0])
            ends[word] = encoded.offsets[i][1]
        words = [encoded.word_ids[i] for i in own]
        return _Context([encoded.ids[i] for i in own], [starts[word] for word in words], [ends[word] for word in words])


def _no_room(num_question_tokens: int, window: int, doc_stride: int) -> RowError:
    return RowError(
        "prepare",
        "too_long",
        f"a question of {num_question_tokens} tokens leaves no room for more than {doc_stride} tokens of context in a "
        f"window of {window}. Shorten it, or lower task_options.doc_stride.",
    )


_NOTES = pa.schema(
    [
        ("row", pa.int32()),
        ("piece", pa.int32()),
        ("text", pa.string()),
        ("first", pa.int32()),
        ("starts", pa.list_(pa.int32())),
        ("ends", pa.list_(pa.int32())),
    ]
)
