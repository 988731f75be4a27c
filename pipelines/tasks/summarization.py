"""Summarization: one text in, `summary_text` out, by an encoder-decoder checkpoint with its own generation defaults."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from pipelines.config import InputConfig
from pipelines.errors import ConfigError
from pipelines.tasks.base import Checkpoint, Prepared, first_answers, prepare_texts, read_options

LONG_DOCUMENTS = ("error", "truncate")


@dataclass(frozen=True, kw_only=True)
class SummarizationOptions:
    """`task_options` of a summarization job."""

    long_documents: str = "error"
    """What becomes of a text longer than the model: error (an error row) or truncate (cut, and the cut counted)."""
    prefix: str | None = None
    """Text put before every input. None: the checkpoint's own (bart-large-cnn's is one space)."""


@dataclass(frozen=True)
class Summarization:
    """See pipelines/tasks/base.py Task for what each method promises."""

    text_column: str
    options: SummarizationOptions
    checkpoint: Checkpoint

    @staticmethod
    def create(columns: InputConfig, options: Mapping[str, Any], checkpoint: Checkpoint) -> "Summarization":
        read = read_options("summarization", options, SummarizationOptions)
        if read.long_documents not in LONG_DOCUMENTS:
            raise ConfigError(
                f"task_options.long_documents: {read.long_documents!r} is not one of {', '.join(LONG_DOCUMENTS)}."
            )
        if read.prefix is not None and not isinstance(read.prefix, str):
            raise ConfigError(f"task_options.prefix: must be a text, not {type(read.prefix).__name__}.")
        prefix = checkpoint.prefix if read.prefix is None else read.prefix
        return Summarization(columns.text_column, replace(read, prefix=prefix), checkpoint)

    def input_columns(self) -> tuple[str, ...]:
        return (self.text_column,)

    def output_fields(self) -> list[pa.Field]:
        return [pa.field("summary_text", pa.string())]

    def settings(self) -> dict[str, Any]:
        return asdict(self.options)

    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: Any) -> Prepared:
        return prepare_texts(
            columns[0],
            self.text_column,
            tokenizer,
            prefix=self.options.prefix or "",
            max_tokens=self.checkpoint.max_positions,
            truncate=self.options.long_documents == "truncate",
        )

    def finish(self, results: pa.Table, num_rows: int, tokenizer: Any) -> list[pa.Array]:
        answers = first_answers(results)
        summaries: list[str | None] = [None] * num_rows
        texts = tokenizer.decode_batch(answers["token_ids"].to_pylist())
        for row, text in zip(answers["row"].to_pylist(), texts, strict=True):
            summaries[row] = text
        return [pa.array(summaries, pa.string())]
