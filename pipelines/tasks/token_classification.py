"""Token classification: a text in, `entities` out, with offsets into the text, by a BLOOM with a token classifier."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from batchloom.models.tokenizers.tokenizer import NO_TEXT, word_starts
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks.base import (
    Answered,
    ColumnKind,
    Ints,
    Prepared,
    Task,
    TaskSpec,
    lists_of,
    refuse_generation,
    request_table,
    with_head,
)
from batchloom.pipelines.tasks.entities import NO_ENTITY, Entity, Token, entities_of, without_overlaps
from batchloom.pipelines.tasks.length import InputLength, LengthOptions
from batchloom.pipelines.tasks.options import read_options
from batchloom.pipelines.tasks.scores import softmax
from batchloom.pipelines.tasks.texts import no_tokens, num_around, unanswerable, unanswerable_words
from batchloom.pipelines.tasks.windows import windows

if TYPE_CHECKING:
    from batchloom.models import Encoded, SinglePass, Tokenizer

ENTITY_TYPE = pa.struct(
    [
        ("entity_group", pa.string()),
        ("score", pa.float32()),
        ("word", pa.string()),
        ("start", pa.int32()),
        ("end", pa.int32()),
    ]
)


ENTITY_OF_WORDS_TYPE = pa.struct([*ENTITY_TYPE, ("start_word", pa.int32()), ("end_word", pa.int32())])

SHARED_TOKENS = 128  # by neighbouring windows


@dataclass(frozen=True, kw_only=True)
class TokenClassificationOptions(LengthOptions):
    """`task_options` of a token-classification job."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = "none"
    """none: every token is an entity. simple: neighbours of one label are joined. The others first give each word one
    label: that of its first token, of its tokens' mean scores, or of its token with the highest score."""
    stride: int | None = None
    """Tokens that neighbouring windows share where a text is longer than one window. None: 128, or less where that is
    half of a window."""
    ignore_labels: tuple[str, ...] = (NO_ENTITY,)
    """Names of entities, as the column holds them, that are left out. An empty list keeps O, what is no entity, too."""
    is_split_into_words: bool = False
    """The column holds lists of words, each tokenized by itself. Entities also have the words that they are of, and
    their characters are those of the words with a space between each two."""


@dataclass(frozen=True, kw_only=True)
class TokenClassification(Task):
    """The token-classification task; pipelines/tasks/base.py Task documents the methods."""

    text_column: str
    options: TokenClassificationOptions
    labels: tuple[str, ...]
    length: InputLength

    @classmethod
    def create(cls, spec: TaskSpec) -> "TokenClassification":
        refuse_generation(spec)
        options = read_options(spec.task, spec.options, TokenClassificationOptions)
        length = InputLength.of(spec, options, None, spec.checkpoint.model_max_length)
        most = max(length.window // 2 - 1, 0)
        if options.stride is not None and not 0 <= options.stride <= most:
            raise ConfigError(f"task_options.stride: is {options.stride}, must be from 0 to {most}.")
        config = spec.checkpoint.config
        labels = tuple(config.id2label[column] for column in range(config.num_labels))
        names = {NO_ENTITY, *labels, *(label.split("-", 1)[-1] for label in labels)}
        if unknown := [label for label in options.ignore_labels if label not in names]:
            raise ConfigError(
                f"task_options.ignore_labels: the checkpoint has no label {', '.join(unknown)}. "
                f"Its labels: {', '.join(labels)}."
            )
        return cls(
            architecture=with_head(spec, "ForTokenClassification"),
            text_column=spec.input.text_column,
            options=options,
            labels=labels,
            length=length,
        )

    def input_columns(self) -> Mapping[str, ColumnKind]:
        return {self.text_column: ColumnKind.TEXTS if self.options.is_split_into_words else ColumnKind.TEXT}

    def output_fields(self) -> list[pa.Field]:
        return [pa.field("entities", pa.list_(self._entity_type))]

    @property
    def _entity_type(self) -> pa.DataType:
        return ENTITY_OF_WORDS_TYPE if self.options.is_split_into_words else ENTITY_TYPE

    def settings(self) -> dict[str, Any]:
        truncation = self.length.truncation
        return {**asdict(self.options), "stride": self.stride, "window": self.length.window, "truncation": truncation}

    @property
    def stride(self) -> int:
        """Tokens that neighbouring windows share."""
        if self.options.stride is not None:
            return self.options.stride
        return min(SHARED_TOKENS, max(self.length.window // 2 - 1, 0))

    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: "Tokenizer") -> Prepared:
        texts = columns[0]
        is_split = self.options.is_split_into_words
        errors = unanswerable_words(texts, self.text_column) if is_split else unanswerable(texts, self.text_column)
        rows = [row for row in range(len(texts)) if row not in errors]
        num_input, num_truncated = np.zeros((2, len(texts)), dtype=np.int32)
        around = num_around(tokenizer)
        asked: list[tuple[int, int, Ints]] = []
        noted: list[tuple[int, int, str | None, Sequence[str] | None]] = []
        places: list[Encoded] = []  # of the windows
        asked_texts = [texts[row].as_py() for row in rows]
        encode = tokenizer.encode_words if is_split else tokenizer.encode_offsets
        for row, text, whole in zip(rows, asked_texts, encode(asked_texts), strict=True):
            if not len(whole):
                errors[row] = no_tokens(self.text_column)
                continue
            if (error := self.length.error(len(whole))) is not None:
                errors[row] = error
                continue
            encoded = whole.part(self.length.places(len(whole), around))
            num_truncated[row] = len(whole) - len(encoded)
            for piece, (start, stop) in enumerate(windows(len(encoded), self.length.window, self.stride)):
                places.append(encoded.part(slice(start, stop)))
                asked.append((row, piece, places[-1].ids))
                first = piece == 0
                noted.append(
                    (
                        row,
                        piece,
                        (" ".join(text) if is_split else text) if first else None,
                        text if first and is_split else None,
                    )
                )
                num_input[row] += stop - start
        return Prepared(request_table(asked), num_input, num_truncated, errors, _notes(noted, places, is_split))

    def ask(self, model: "SinglePass", token_ids: Sequence[Sequence[int]]) -> Mapping[str, pa.Array]:
        logits = [logits_TL.flatten().numpy() for logits_TL in model.token_logits(token_ids)]
        return {"values": pa.array(logits, pa.list_(pa.float32()))}

    def finish(self, answered: Answered, tokenizer: "Tokenizer") -> list[pa.Array]:  # noqa: ARG002
        found: dict[int, pa.Array] = {}
        for row, in_windows in answered.pieces():
            text, words = in_windows[0][1]["text"], in_windows[0][1]["words"]
            entities = [entity for values, note in in_windows for entity in self._entities(text, values, note)]
            if len(in_windows) > 1:
                entities = without_overlaps(entities)
            found[row] = self._column(entities, words)
        return [lists_of(found, answered.num_rows, self._entity_type)]

    def _column(self, entities: Sequence[Entity], words: Sequence[str] | None) -> pa.Array:
        columns: dict[str, Sequence[Any]] = {
            name: [getattr(entity, name) for entity in entities] for name in ENTITY_TYPE.names
        }
        if words is not None:
            starts = word_starts(words)
            columns["start_word"] = [bisect_right(starts, start) - 1 for start in columns["start"]]
            columns["end_word"] = [bisect_left(starts, end) for end in columns["end"]]
        fields = list(self._entity_type)
        return pa.StructArray.from_arrays([pa.array(columns[one.name], one.type) for one in fields], fields=fields)

    def _entities(self, text: str, values: np.ndarray[Any, Any], note: Mapping[str, Any]) -> list[Entity]:
        logits_TL = values.reshape(-1, len(self.labels))
        tokens = [
            Token(start, end, scores, word)
            for start, end, scores, is_text, word in zip(
                note["starts"].tolist(),
                note["ends"].tolist(),
                softmax(logits_TL),
                note["is_text"].tolist(),
                note["word_ids"].tolist() or [None] * len(logits_TL),
                strict=True,
            )
            if is_text
        ]
        options = self.options
        return list(entities_of(text, tokens, self.labels, options.aggregation_strategy, options.ignore_labels))


def _notes(
    noted: Sequence[tuple[int, int, str | None, Sequence[str] | None]], places: Sequence["Encoded"], is_split: bool
) -> pa.Table:
    """Return what `finish` needs of windows. `noted`: row, piece, and, of a row's first, the text and its words."""
    rows, pieces, texts, words = zip(*noted, strict=True) if noted else ((), (), (), ())
    columns = {
        "row": rows,
        "piece": pieces,
        "text": texts,
        "words": words,
        "starts": [own.offsets[:, 0] for own in places],
        "ends": [own.offsets[:, 1] for own in places],
        "is_text": [own.sequence_ids != NO_TEXT for own in places],
        "word_ids": [own.word_ids if is_split else None for own in places],
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in _NOTES], schema=_NOTES)


_NOTES = pa.schema(
    [
        ("row", pa.int32()),
        ("piece", pa.int32()),
        ("text", pa.string()),
        ("starts", pa.list_(pa.int32())),
        ("ends", pa.list_(pa.int32())),
        ("is_text", pa.list_(pa.bool_())),
        ("words", pa.list_(pa.string())),
        ("word_ids", pa.list_(pa.int32())),
    ]
)
