"""Summarization: a text in, `summary_text` out, by an encoder-decoder checkpoint with its own generation defaults."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from batchloom.pipelines.arrow_functions import pc
from batchloom.pipelines.errors import ConfigError, RowError
from batchloom.pipelines.tasks.answer_prefix import AnswerPrefix, columns_with, with_prefixes
from batchloom.pipelines.tasks.answers import AnswerColumns, whole_answers
from batchloom.pipelines.tasks.base import Answered, ColumnKind, Prepared, Task, TaskSpec, request_table, with_head
from batchloom.pipelines.tasks.chunks import chunks, joined
from batchloom.pipelines.tasks.cures import Cure
from batchloom.pipelines.tasks.generating import resolved_generation
from batchloom.pipelines.tasks.length import InputLength, LengthOptions
from batchloom.pipelines.tasks.options import read_options
from batchloom.pipelines.tasks.texts import prepare_texts

if TYPE_CHECKING:
    from batchloom.models import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SummarizationOptions(LengthOptions):
    """`task_options` of a summarization job."""

    long_documents: Literal["error", "truncate", "chunk"] = "error"
    """For a text longer than the model's positions: an error row; truncated, and the cut counted; read in chunks."""
    merge: Literal["join", "summarize"] = "join"
    """The chunks' summaries are joined by a space, or joined and summarized again until one is left."""
    prefix: str | None = None
    """Text before every input. None: the checkpoint's own (bart-large-cnn's is one space)."""
    answer_prefix: str | None = None
    """What summaries begin with: a text, or a template such as "{title}:"; of a text in chunks, that of the first."""
    scores: bool = False
    """Adds the columns sequence_score and token_log_probs."""


@dataclass(frozen=True, kw_only=True)
class Summarization(Task):
    """The summarization task; pipelines/tasks/base.py Task documents the methods."""

    cures: ClassVar[tuple[Cure, ...]] = (Cure("too_long", "long_documents", "error", "chunk", ("merge",)),)

    text_column: str
    options: SummarizationOptions
    prefix: str
    length: InputLength
    answer_prefix: AnswerPrefix | None

    @classmethod
    def create(cls, spec: TaskSpec) -> "Summarization":
        options = read_options(spec.task, spec.options, SummarizationOptions)
        if options.long_documents == "chunk" and options.truncation is not None:
            raise ConfigError(
                f"task_options.truncation: is {options.truncation}, and long_documents: chunk reads texts whole. Leave "
                "one of the two out."
            )
        architecture, generation = with_head(spec, "ForConditionalGeneration"), resolved_generation(spec)
        answer_prefix = AnswerPrefix.of(spec, options.answer_prefix, architecture, generation)
        return cls(
            architecture=architecture,
            generation=generation,
            num_prefix_tokens=0 if answer_prefix is None else answer_prefix.num_tokens,
            log_probs=options.scores,
            text_column=spec.input.text_column,
            options=options,
            prefix=spec.checkpoint.prefix if options.prefix is None else options.prefix,
            length=InputLength.of(spec, options, "right" if options.long_documents == "truncate" else "error"),
            answer_prefix=answer_prefix,
        )

    def input_columns(self) -> Mapping[str, ColumnKind]:
        return columns_with({self.text_column: ColumnKind.TEXT}, self.answer_prefix)

    def output_fields(self) -> list[pa.Field]:
        return self._columns.fields()

    @property
    def _columns(self) -> AnswerColumns:
        return AnswerColumns("summary_text", self.generation["num_return_sequences"] > 1, self.options.scores)

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.options), "prefix": self.prefix, "max_length": self.length.most}

    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: "Tokenizer") -> Prepared:
        prepared = self._prepare_texts(columns[0], tokenizer)
        if self.answer_prefix is None:
            return prepared
        given = dict(zip(self.input_columns(), columns, strict=True))
        return with_prefixes(prepared, self.answer_prefix.tokens(given, len(columns[0]), tokenizer))

    def _prepare_texts(self, texts: pa.ChunkedArray, tokenizer: "Tokenizer") -> Prepared:
        """Return the requests for texts, without what their answers begin with."""
        prepared = prepare_texts(
            texts,
            self.text_column,
            tokenizer,
            prefix=self.prefix,
            length=self.length,
            advice="Set task_options.long_documents to chunk or truncate.",
        )
        return self._in_chunks(prepared, texts, tokenizer) if self.options.long_documents == "chunk" else prepared

    def _in_chunks(self, prepared: Prepared, texts: pa.ChunkedArray, tokenizer: "Tokenizer") -> Prepared:
        """Return `prepared` with requests, one a chunk, in place of the errors of rows that were too long."""
        long = [row for row, error in prepared.errors.items() if error.kind == "too_long"]
        if not long:
            return prepared
        assert self.length.most is not None
        asked: list[tuple[int, int, list[int]]] = []
        for row in long:
            in_chunks = chunks(texts[row].as_py(), tokenizer, self.prefix, self.length.most)
            encoded = tokenizer.encode_batch([self.prefix + chunk for chunk in in_chunks])
            asked += [(row, piece, ids) for piece, ids in enumerate(encoded)]
        num_input = prepared.num_input_tokens.copy()
        for row, _, ids in asked:
            num_input[row] += len(ids)
        return replace(
            prepared,
            requests=pa.concat_tables([prepared.requests, request_table(asked)]),
            num_input_tokens=num_input,
            errors={row: error for row, error in prepared.errors.items() if row not in long},
        )

    def follow_up(self, results: pa.Table, tokenizer: "Tokenizer") -> Prepared | None:
        """Return requests to summarize the joined summaries of each row's chunks; called until none has several."""
        if self.options.merge == "join":
            return None
        answers = results.filter(pc.equal(results["sample"], 0))  # the best of each request
        counts = np.bincount(answers["row"].to_numpy(), minlength=1)
        several = pc.is_in(answers["row"], pa.array(np.flatnonzero(counts > 1), pa.int32()))
        texts = _joined(answers.filter(several), tokenizer)
        again = np.array(list(texts), dtype=np.int32)
        if not texts:
            return None
        prepared = self._prepare_texts(pa.chunked_array([list(texts.values())], pa.string()), tokenizer)
        if self.answer_prefix is not None:  # again that of the row, with which the first of its summaries began
            prefixes = _prefixes(answers)
            prepared = with_prefixes(prepared, [prefixes[row] for row in texts])
        before = counts[again]
        now = np.bincount(prepared.requests["row"].to_numpy(), minlength=len(again))
        stuck = {int(row): _not_shrinking(int(before[row])) for row in np.flatnonzero(now >= before)}
        moving = prepared.requests.filter(pc.invert(pc.is_in(prepared.requests["row"], pa.array(stuck, pa.int32()))))
        errors = {**prepared.errors, **stuck}
        return replace(
            prepared,
            requests=moving.set_column(0, "row", pa.array(again).take(moving["row"])),
            errors={int(again[row]): error for row, error in errors.items()},
        )

    def finish(self, answered: Answered, tokenizer: "Tokenizer") -> list[pa.Array]:
        return self._columns.of(answered, tokenizer)


def _joined(summaries: pa.Table, tokenizer: "Tokenizer") -> dict[int, str]:
    """Return each row's summaries joined by spaces, without rows whose summaries are blank."""
    texts = tokenizer.decode_batch(whole_answers(summaries))
    rows = groupby(zip(summaries["row"].to_pylist(), texts, strict=True), key=lambda summary: summary[0])
    return {row: text for row, own in rows if (text := joined([text for _, text in own]))}


def _prefixes(summaries: pa.Table) -> dict[int, list[int] | None]:
    """Return what the first summary of each row was made to begin with."""
    first = summaries.filter(pc.equal(summaries["piece"], 0))
    return dict(zip(first["row"].to_pylist(), first["answer_prefix"].to_pylist(), strict=True))


def _not_shrinking(num_summaries: int) -> RowError:
    return RowError(
        "infer",
        "not_shrinking",
        f"{num_summaries} summaries together are as long as the text they came from. Lower generation.max_new_tokens, "
        "or set task_options.merge to join.",
    )
