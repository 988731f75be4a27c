"""Conversation: a dialogue in, `reply` out, by a Blenderbot; where not all turns fit, the newest are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchloom.pipelines.arrow_functions import pc
from batchloom.pipelines.errors import ConfigError, RowError
from batchloom.pipelines.tasks.answer_prefix import AnswerPrefix, columns_with, with_prefixes
from batchloom.pipelines.tasks.answers import AnswerColumns
from batchloom.pipelines.tasks.base import Answered, ColumnKind, Prepared, Task, TaskSpec, request_table, with_head
from batchloom.pipelines.tasks.generating import resolved_generation
from batchloom.pipelines.tasks.length import InputLength, LengthOptions, too_long
from batchloom.pipelines.tasks.options import read_options
from batchloom.pipelines.tasks.texts import no_tokens

if TYPE_CHECKING:
    from batchloom.models import Tokenizer

PERSONA = "your persona: "  # the prefix of lines about the speaker in the Blenderbots' training data


@dataclass(frozen=True, kw_only=True)
class ConversationalOptions(LengthOptions):
    """`task_options` of a conversational job."""

    persona_column: str | None = None
    """A column with statements about the speaker, a text of lines or a list of them; never dropped."""
    answer_prefix: str | None = None
    """What replies begin with: a text, or a template such as "{name}:" with columns other than the dialogue's."""
    scores: bool = False
    """Adds the columns sequence_score and token_log_probs."""


@dataclass(frozen=True)
class Dialogue:
    """One row's dialogue, each turn without surrounding white space."""

    persona: list[str]
    turns: list[str]
    """Oldest first."""


@dataclass(frozen=True, kw_only=True)
class Conversational(Task):
    """The conversational task; pipelines/tasks/base.py Task documents the methods."""

    text_column: str
    options: ConversationalOptions
    delimiter: str
    length: InputLength
    answer_prefix: AnswerPrefix | None

    @classmethod
    def create(cls, spec: TaskSpec) -> "Conversational":
        options = read_options(spec.task, spec.options, ConversationalOptions)
        if options.persona_column == spec.input.text_column:
            raise ConfigError(
                f"task_options.persona_column: is {options.persona_column!r}, which is input.text_column. "
                "Name another column, or leave it out."
            )
        if options.truncation == "right":
            raise ConfigError(
                "task_options.truncation: is right, which would leave out the newest turns, to which the reply is. Use "
                "left, the default, or error."
            )
        delimiter = spec.checkpoint.family.dialogue_separator
        if delimiter is None:
            raise ConfigError(
                "model: conversational needs a dialogue model, such as a Blenderbot; found "
                f"{spec.checkpoint.architecture}. For dialogues with another checkpoint use text2text-generation or "
                "text-generation."
            )
        architecture, generation = with_head(spec, "ForConditionalGeneration"), resolved_generation(spec)
        answer_prefix = AnswerPrefix.of(spec, options.answer_prefix, architecture, generation)
        lists = [] if answer_prefix is None else [*answer_prefix.template.columns]
        for name in (spec.input.text_column, options.persona_column):
            if name in lists:
                raise ConfigError(
                    f"task_options.answer_prefix: names {name!r}, a column that may hold lists of texts. Name other "
                    "columns."
                )
        return cls(
            architecture=architecture,
            generation=generation,
            num_prefix_tokens=0 if answer_prefix is None else answer_prefix.num_tokens,
            log_probs=options.scores,
            text_column=spec.input.text_column,
            options=options,
            delimiter=delimiter,
            length=InputLength.of(spec, options, "left"),
            answer_prefix=answer_prefix,
        )

    def input_columns(self) -> Mapping[str, ColumnKind]:
        columns = {self.text_column: ColumnKind.TEXT_OR_TEXTS}
        if self.options.persona_column is not None:
            columns[self.options.persona_column] = ColumnKind.TEXT_OR_TEXTS
        return columns_with(columns, self.answer_prefix)

    def output_fields(self) -> list[pa.Field]:
        reply, *scores = self._columns.fields()
        return [reply, pa.field("num_dropped_turns", pa.int32()), *scores]

    @property
    def most(self) -> int:
        """Tokens of a dialogue at most."""
        assert self.length.most is not None, "dialogue models have learned positions"
        return self.length.most

    @property
    def _columns(self) -> AnswerColumns:
        return AnswerColumns("reply", self.generation["num_return_sequences"] > 1, self.options.scores)

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.options), **self.length.settings}

    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: "Tokenizer") -> Prepared:
        texts = columns[0].to_pylist()
        given = dict(zip(self.input_columns(), columns, strict=True))
        persona_column = self.options.persona_column
        personas = [None] * len(texts) if persona_column is None else given[persona_column].to_pylist()
        errors: dict[int, RowError] = {}
        dialogues: dict[int, Dialogue] = {}
        for row, (text, persona) in enumerate(zip(texts, personas, strict=True)):
            turns = lines(text)
            if text is None:
                errors[row] = RowError("prepare", "null_text", f"column {self.text_column!r} is null in this row")
            elif not turns:
                errors[row] = RowError("prepare", "empty_text", f"column {self.text_column!r} has no turn in this row")
            else:
                dialogues[row] = Dialogue([_as_persona(line) for line in lines(persona)], turns)
        fitted = dict(zip(dialogues, self._fit(list(dialogues.values()), tokenizer), strict=True))
        num_input, num_truncated, num_dropped = np.zeros((3, len(texts)), dtype=np.int32)
        ids = {}
        for row, fit in fitted.items():
            if isinstance(fit, RowError):
                errors[row] = fit
            else:
                ids[row], num_truncated[row], num_dropped[row] = fit
                num_input[row] = len(ids[row])
        requests = request_table([(row, 0, own) for row, own in ids.items()])
        notes = pa.table({"num_dropped_turns": num_dropped})
        prepared = Prepared(requests, num_input, num_truncated, errors, notes)
        if self.answer_prefix is None:
            return prepared
        return with_prefixes(prepared, self.answer_prefix.tokens(given, len(texts), tokenizer))

    def _fit(
        self, dialogues: Sequence[Dialogue], tokenizer: "Tokenizer"
    ) -> list[tuple[list[int], int, int] | RowError]:
        """Return (token ids, truncated tokens, dropped turns) for each dialogue, or the reason why it has none."""
        firsts = self._first_turns(dialogues, tokenizer)
        kept = [
            [*dialogue.persona, *dialogue.turns[first:]] for dialogue, (first, _) in zip(dialogues, firsts, strict=True)
        ]
        encoded = tokenizer.encode_batch([self.delimiter.join(lines) for lines in kept])
        return [
            self._trimmed(ids, dialogue.persona, first, num_cut, tokenizer)
            for ids, dialogue, (first, num_cut) in zip(encoded, dialogues, firsts, strict=True)
        ]

    def _first_turns(self, dialogues: Sequence[Dialogue], tokenizer: "Tokenizer") -> list[tuple[int, int]]:
        """Return each dialogue's first turn of the longest suffix that fits, and the tokens of the turns before it."""
        apart, together = tokenizer.encode_batch(["a", f"a{self.delimiter}a"], add_special_tokens=False)
        delimiter = len(together) - 2 * len(apart)
        lines = [line for dialogue in dialogues for line in (*dialogue.persona, *dialogue.turns)]
        _, offsets = tokenizer.encode_flat(lines, add_special_tokens=False)
        lengths, position, firsts = np.diff(offsets).tolist(), 0, []
        for dialogue in dialogues:
            middle = position + len(dialogue.persona)
            end = middle + len(dialogue.turns)
            room = self.most - tokenizer.num_special_tokens()
            room -= sum(lengths[position:middle]) + len(dialogue.persona) * delimiter
            first = end
            while first > middle and (room := room - lengths[first - 1] - delimiter) >= -delimiter:
                first -= 1
            first = min(first, end - 1)  # the newest turn always stays, truncated if necessary
            firsts.append((first - middle, sum(lengths[middle:first])))
            position = end
        return firsts

    def _trimmed(
        self, ids: list[int], persona: Sequence[str], first: int, num_cut: int, tokenizer: "Tokenizer"
    ) -> tuple[list[int], int, int] | RowError:
        """Truncate the start of a newest turn that is too long; its end, which the reply answers, stays."""
        if not ids:
            return no_tokens(self.text_column)
        too_many = max(len(ids) - self.most, 0)
        if self.length.truncation == "error" and too_many + num_cut:
            return too_long(
                len(ids) + num_cut, self.most, "Shorten the dialogue, or set task_options.truncation to left."
            )
        head = 0
        if too_many and persona:
            (before,) = tokenizer.encode_batch([self.delimiter.join([*persona, ""])], add_special_tokens=False)
            head = len(before)
        if too_many and len(ids) - too_many - head <= tokenizer.num_special_tokens():
            return RowError(
                "prepare",
                "too_long",
                f"the persona has {head} tokens and leaves no room for a turn: {self.most} are taken at most. "
                "Shorten it.",
            )
        return [*ids[:head], *ids[head + too_many :]], num_cut + too_many, first

    def finish(self, answered: Answered, tokenizer: "Tokenizer") -> list[pa.Array]:
        assert answered.notes is not None
        reply, *scores = self._columns.of(answered, tokenizer)
        dropped = pc.if_else(reply.is_valid(), answered.notes["num_dropped_turns"], pa.scalar(None, pa.int32()))
        return [reply, dropped.combine_chunks(), *scores]


def lines(text: str | Sequence[str | None] | None) -> list[str]:
    """Return the turns of a dialogue, a list's items or a text's lines, without blank ones."""
    items = text.splitlines() if isinstance(text, str) else (text or ())
    return [stripped for item in items if item and (stripped := item.strip())]


def _as_persona(line: str) -> str:
    return line if line.lower().startswith(PERSONA.strip()) else PERSONA + line
