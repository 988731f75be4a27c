"""Question answering: a question and a context in, the span of the context that answers it out, with its score.

Contexts longer than one window are read in overlapping windows; the best span of all windows is the answer. Answers are
whole words, in scripts without spaces between words whole tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchloom.models.tokenizers.tokenizer import NO_TEXT
from batchloom.pipelines.errors import ConfigError, RowError
from batchloom.pipelines.tasks.base import (
    Answered,
    ColumnKind,
    Ints,
    Prepared,
    Task,
    TaskSpec,
    refuse_generation,
    request_table,
    with_head,
)
from batchloom.pipelines.tasks.length import CUTS, InputLength, LengthOptions, too_long
from batchloom.pipelines.tasks.options import read_options
from batchloom.pipelines.tasks.pairs import PairTemplate
from batchloom.pipelines.tasks.spans import spans_of
from batchloom.pipelines.tasks.texts import no_tokens, unanswerable
from batchloom.pipelines.tasks.windows import windows
from batchloom.pipelines.tasks.words import whole_word

if TYPE_CHECKING:
    from batchloom.models import Encoded, SinglePass, Tokenizer

WINDOW_TOKENS = 384  # question and special tokens included: the length that these checkpoints are trained with
QUESTION_TOKENS = 64  # longer questions are truncated; at half of a window where it has fewer than 128 tokens
SHARED_TOKENS = 128  # by neighbouring windows, at half of what a window has for the context where that is less
SPECIAL_TOKENS = 8  # around the two, at most
ANSWER_FIELDS = (("answer", pa.string()), ("score", pa.float32()), ("start", pa.int32()), ("end", pa.int32()))


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringOptions(LengthOptions):
    """`task_options` of a question-answering job."""

    doc_stride: int | None = None
    """Tokens of the context that neighbouring windows share. None: 128, or half of a window's where that is less."""
    max_answer_len: int = 15
    """The maximum number of tokens of an answer."""
    top_k: int = 1
    """How many of the best answers there are at most. More than 1 adds the column answers."""
    align_to_words: bool = True
    """Answers are whole words, in scripts without spaces whole tokens. False: whole tokens everywhere."""
    handle_impossible_answer: bool = False
    """Answer "" where the first token, whose score is that of no answer, has a better score than every span."""


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(Task):
    """The question-answering task; pipelines/tasks/base.py Task documents the methods."""

    question_column: str
    context_column: str
    options: QuestionAnsweringOptions
    length: InputLength

    @classmethod
    def create(cls, spec: TaskSpec) -> "QuestionAnswering":
        refuse_generation(spec)
        options = read_options(spec.task, spec.options, QuestionAnsweringOptions)
        habit = min(WINDOW_TOKENS, spec.checkpoint.model_max_length or WINDOW_TOKENS)
        length = InputLength.of(spec, options, None, habit)
        window = length.window
        most = max(window - question_room(window) - SPECIAL_TOKENS, 0)
        problems = []
        if options.doc_stride is not None and not 0 <= options.doc_stride <= most:
            problems.append(f"task_options.doc_stride: is {options.doc_stride}, must be from 0 to {most}.")
        if spec.input.question_column == spec.input.context_column:
            problems.append(f"input: question_column and context_column are both {spec.input.context_column!r}.")
        for name in ("max_answer_len", "top_k"):
            if (value := getattr(options, name)) < 1:
                problems.append(f"task_options.{name}: is {value}, must be at least 1.")
        if problems:
            raise ConfigError("\n".join(problems))
        return cls(
            architecture=with_head(spec, "ForQuestionAnswering"),
            question_column=spec.input.question_column,
            context_column=spec.input.context_column,
            options=options,
            length=length,
        )

    def input_columns(self) -> Mapping[str, ColumnKind]:
        return {self.question_column: ColumnKind.TEXT, self.context_column: ColumnKind.TEXT}

    def output_fields(self) -> list[pa.Field]:
        answers = [] if self.options.top_k == 1 else [("answers", pa.list_(pa.struct(ANSWER_FIELDS)))]
        return [pa.field(*field) for field in [*ANSWER_FIELDS, *answers]]

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.options), "window": self.window, "truncation": self.length.truncation}

    @property
    def window(self) -> int:
        """Tokens that are read at once, question and special tokens included."""
        return self.length.window

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
        asked: list[tuple[int, int, Ints]] = []
        noted: list[tuple[Any, ...]] = []  # as _NOTES has them
        for row, question, context, encoded in zip(
            rows, question_ids, contexts, tokenizer.encode_offsets(contexts), strict=True
        ):
            tokens = _Context.of(context, encoded, self.options.align_to_words)
            if not len(tokens.ids):
                errors[row] = no_tokens(self.context_column)
                continue
            asked_ids = question[: question_room(self.window)]
            room = self.window - template.num_tokens - len(asked_ids)
            if self.length.truncation == "error" and len(tokens.ids) > room:
                num_tokens = len(tokens.ids) + len(asked_ids) + template.num_tokens
                errors[row] = too_long(num_tokens, self.window, "Shorten it, or leave task_options.truncation out.")
                continue
            num_cut = len(question) - len(asked_ids)
            if self.length.truncation in CUTS:
                num_cut += max(len(tokens.ids) - room, 0)
                tokens = tokens.part(self.length.kept(len(tokens.ids), max(room, 0)))
            stride = self.options.doc_stride
            if stride is None:
                stride = min(SHARED_TOKENS, max(room, 0) // 2)
            if room <= stride and len(tokens.ids) > room:
                errors[row] = _no_room(len(question), self.window, stride)
                continue
            num_truncated[row] = num_cut
            for piece, (start, stop) in enumerate(windows(len(tokens.ids), room, stride)):
                ids = np.array(template.fill(asked_ids, tokens.ids[start:stop].tolist()), np.int32)
                asked.append((row, piece, ids))
                num_input[row] += len(ids)
                first = len(template.before) + len(asked_ids) + len(template.between)
                text = context if piece == 0 else None
                noted.append((row, piece, text, first, tokens.starts[start:stop], tokens.ends[start:stop]))
        columns = list(zip(*noted, strict=True)) or [()] * len(_NOTES)
        notes = pa.table([pa.array(*each) for each in zip(columns, _NOTES.types, strict=True)], schema=_NOTES)
        return Prepared(request_table(asked), num_input, num_truncated, errors, notes)

    def ask(self, model: "SinglePass", token_ids: Sequence[Sequence[int]]) -> Mapping[str, pa.Array]:
        logits = [np.concatenate([start.numpy(), end.numpy()]) for start, end in model.spans(token_ids)]
        return {"values": pa.array(logits, pa.list_(pa.float32()))}

    def finish(self, answered: Answered, tokenizer: "Tokenizer") -> list[pa.Array]:  # noqa: ARG002
        answers: list[list[dict[str, Any]] | None] = [None] * answered.num_rows
        for row, in_windows in answered.pieces():
            answers[row] = self._best(in_windows)
        rows = [{**own[0], "answers": own} if own else {} for own in answers]
        return [pa.array([row.get(field.name) for row in rows], field.type) for field in self.output_fields()]

    def _best(self, in_windows: Sequence[tuple[np.ndarray[Any, Any], Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """Return the best answers over the windows of one row, each span of the text once, with its best score."""
        options = self.options
        nothing = 1.0  # no window's probability of no answer exceeds 1
        text = in_windows[0][1]["text"]
        scores: dict[tuple[int, int], float] = {}
        for values, note in in_windows:
            start_T, end_T = np.split(values, 2)
            first = note["first"]
            context = range(first, first + len(note["starts"]))
            found, no_answer = spans_of(
                start_T, end_T, context, options.max_answer_len, options.handle_impossible_answer
            )
            nothing = min(nothing, no_answer)
            own: set[tuple[int, int]] = set()
            for span in found:
                place = int(note["starts"][span.start - first]), int(note["ends"][span.stop - 1 - first])
                if place not in own:
                    scores[place] = max(scores.get(place, 0.0), span.score)
                    own.add(place)
                if len(own) == options.top_k:
                    break
        answers = [
            {"answer": text[start:end], "score": score, "start": start, "end": end}
            for (start, end), score in scores.items()
        ]
        if options.handle_impossible_answer:
            answers.append({"answer": "", "score": nothing, "start": 0, "end": 0})
        return sorted(answers, key=lambda answer: -answer["score"])[: options.top_k]


def question_room(window: int) -> int:
    """Return the tokens that a question has at most in a window."""
    return min(QUESTION_TOKENS, window // 2)


@dataclass(frozen=True)
class _Context:
    """A context's tokens, with the characters that an answer has which begins or ends with each."""

    ids: Ints
    starts: Ints
    ends: Ints

    def part(self, chosen: slice) -> "_Context":
        """Return some of the tokens."""
        return _Context(self.ids[chosen], self.starts[chosen], self.ends[chosen])

    @staticmethod
    def of(text: str, encoded: "Encoded", align_to_words: bool) -> "_Context":
        own = encoded.part(encoded.sequence_ids != NO_TEXT)
        places = own.offsets
        if align_to_words and len(own):
            _, first, number = np.unique(own.word_ids, return_index=True, return_inverse=True)
            last = len(own) - 1 - np.unique(own.word_ids[::-1], return_index=True)[1]
            words = np.stack([places[first, 0], places[last, 1]], axis=1)[number]
            places = words if text.isascii() else _whole_words(text, places, words)
        return _Context(own.ids, places[:, 0], places[:, 1])


def _whole_words(text: str, tokens: Ints, words: Ints) -> Ints:
    pairs = zip(tokens.tolist(), words.tolist(), strict=True)
    return np.array([whole_word(text, (a, b), (c, d)) for (a, b), (c, d) in pairs], np.int32)


def _no_room(num_question_tokens: int, window: int, doc_stride: int) -> RowError:
    return RowError(
        "prepare",
        "too_long",
        f"a question of {num_question_tokens} tokens leaves no room for more than the {doc_stride} tokens of context "
        f"that windows of {window} share. Shorten it, or lower task_options.doc_stride.",
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
