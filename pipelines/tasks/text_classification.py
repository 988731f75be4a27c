"""Text classification: a text or a pair of texts in, `label` and `scores` out, by a sequence classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks.base import (
    Answered,
    ColumnKind,
    Prepared,
    Task,
    TaskSpec,
    Values,
    refuse_generation,
    with_head,
)
from batchloom.pipelines.tasks.length import InputLength, LengthOptions
from batchloom.pipelines.tasks.options import read_options
from batchloom.pipelines.tasks.pairs import prepare_pairs
from batchloom.pipelines.tasks.scores import sigmoid, softmax
from batchloom.pipelines.tasks.texts import prepare_texts

if TYPE_CHECKING:
    from batchloom.models import SinglePass, Tokenizer

Applied = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True, kw_only=True)
class TextClassificationOptions(LengthOptions):
    """`task_options` of a text-classification job."""

    top_k: int | None = None
    """How many of the best labels `scores` lists. None: all of them."""
    function_to_apply: Applied | None = None
    """How logits become scores. None: by the checkpoint's problem_type: softmax for one label of several, sigmoid for
    multi-label classification or a single label, none for regression."""


@dataclass(frozen=True, kw_only=True)
class TextClassification(Task):
    """The text-classification task; pipelines/tasks/base.py Task documents the methods."""

    text_column: str
    pair_column: str | None
    """The column with each text's partner; None: texts stand alone."""
    options: TextClassificationOptions
    labels: tuple[str, ...]
    applied: Applied
    length: InputLength

    @classmethod
    def create(cls, spec: TaskSpec) -> "TextClassification":
        refuse_generation(spec)
        options = read_options(spec.task, spec.options, TextClassificationOptions)
        if options.top_k is not None and options.top_k < 1:
            raise ConfigError(f"task_options.top_k: is {options.top_k}, must be at least 1, or null for all labels.")
        if spec.input.text_pair_column == spec.input.text_column:
            raise ConfigError(f"input.text_pair_column: is {spec.input.text_column!r}, as input.text_column is.")
        config = spec.checkpoint.config
        return cls(
            architecture=with_head(spec, "ForSequenceClassification"),
            text_column=spec.input.text_column,
            pair_column=spec.input.text_pair_column,
            options=options,
            labels=tuple(config.id2label[column] for column in range(config.num_labels)),
            applied=options.function_to_apply or _function_of(config.problem_type, config.num_labels),
            length=InputLength.of(spec, options, "right"),
        )

    def input_columns(self) -> Mapping[str, ColumnKind]:
        columns = (self.text_column, self.pair_column) if self.pair_column else (self.text_column,)
        return dict.fromkeys(columns, ColumnKind.TEXT)

    def output_fields(self) -> list[pa.Field]:
        score = pa.struct([("label", pa.string()), ("score", pa.float32())])
        return [pa.field("label", pa.string()), pa.field("scores", pa.list_(score))]

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.options), "function_to_apply": self.applied, **self.length.settings}

    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: "Tokenizer") -> Prepared:
        """Prepare the texts; longer ones are truncated, and the cut counted, unless they are to be errors."""
        if self.pair_column is None:
            return prepare_texts(columns[0], self.text_column, tokenizer, length=self.length)
        return prepare_pairs(columns, (self.text_column, self.pair_column), tokenizer, length=self.length)

    def ask(self, model: "SinglePass", token_ids: Sequence[Sequence[int]]) -> Mapping[str, pa.Array]:
        return {"values": pa.array(list(model.classify(token_ids).numpy()), pa.list_(pa.float32()))}

    def finish(self, answered: Answered, tokenizer: "Tokenizer") -> list[pa.Array]:  # noqa: ARG002
        best: list[str | None] = [None] * answered.num_rows
        scores: list[list[dict[str, Any]] | None] = [None] * answered.num_rows
        logits = answered.results["values"].combine_chunks().flatten().to_numpy().reshape(-1, len(self.labels))
        for row, row_scores in zip(answered.results["row"].to_pylist(), apply(self.applied, logits), strict=True):
            order = np.argsort(-row_scores, kind="stable")[: self.options.top_k]
            scores[row] = [{"label": self.labels[i], "score": row_scores[i]} for i in order]
            best[row] = self.labels[order[0]]
        return [pa.array(best, pa.string()), pa.array(scores, self.output_fields()[1].type)]


def apply(function: Applied, logits: Values) -> Values:
    """Convert logits [rows, labels] to scores [rows, labels]."""
    if function == "none":
        return logits
    return sigmoid(logits) if function == "sigmoid" else softmax(logits)


def _function_of(problem_type: str | None, num_labels: int) -> Applied:
    if problem_type == "regression":
        return "none"
    if problem_type == "multi_label_classification" or num_labels == 1:
        return "sigmoid"
    return "softmax"
