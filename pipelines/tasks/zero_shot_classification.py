"""Zero-shot classification: a text and labels in, `labels` and `scores` out, best first, by an NLI checkpoint; `label`
and `score` are the best.

The text is the premise, each label makes a hypothesis; the score is the probability that the text entails it.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchloom.pipelines.errors import ConfigError, RowError
from batchloom.pipelines.tasks.base import (
    Answered,
    ColumnKind,
    Ints,
    Prepared,
    Task,
    TaskSpec,
    Values,
    refuse_generation,
    request_table,
    with_head,
)
from batchloom.pipelines.tasks.length import InputLength, LengthOptions
from batchloom.pipelines.tasks.options import read_options
from batchloom.pipelines.tasks.pairs import PairTemplate
from batchloom.pipelines.tasks.prompts import fields_of
from batchloom.pipelines.tasks.scores import softmax
from batchloom.pipelines.tasks.texts import token_arrays, unanswerable, unanswerable_lists

if TYPE_CHECKING:
    from batchloom.models import SinglePass, Tokenizer

log = logging.getLogger(__name__)

ABOVE = ("labels_above", pa.list_(pa.string()))


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(LengthOptions):
    """`task_options` of a zero-shot-classification job."""

    candidate_labels: tuple[str, ...] | None = None
    """The labels of every row."""
    labels_column: str | None = None
    """A column with each row's own labels, lists of texts."""
    hypothesis_template: str = "This example is {}."
    """The hypothesis; the label replaces {}."""
    multi_label: bool = False
    """False: the scores of a row sum to 1. True: each label is scored independently."""
    threshold: float | None = None
    """With multi_label: the column `labels_above` lists the labels with a score above this."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotClassification(Task):
    """The zero-shot-classification task; pipelines/tasks/base.py Task documents the methods."""

    text_column: str
    options: ZeroShotOptions
    entailment: int
    """Its column of the logits."""
    contradiction: int
    num_classes: int
    length: InputLength
    tells_best: bool = True
    """By the columns label and score."""

    @classmethod
    def create(cls, spec: TaskSpec) -> "ZeroShotClassification":
        refuse_generation(spec)
        options = read_options(spec.task, spec.options, ZeroShotOptions)
        _check(options)
        entailment, contradiction = _nli_columns(spec)
        return cls(
            architecture=with_head(spec, "ForSequenceClassification"),
            text_column=spec.input.text_column,
            options=options,
            entailment=entailment,
            contradiction=contradiction,
            num_classes=spec.checkpoint.config.num_labels,
            length=InputLength.of(spec, options, "right"),
        )

    def beside(self, kept: Collection[str]) -> "ZeroShotClassification":
        """Leave out `label` and `score` where the input has such a column: it is often the right label."""
        return replace(self, tells_best=False) if {"label", "score"} & set(kept) else self

    def input_columns(self) -> Mapping[str, ColumnKind]:
        columns = {self.text_column: ColumnKind.TEXT}
        return columns | ({self.options.labels_column: ColumnKind.TEXTS} if self.options.labels_column else {})

    def output_fields(self) -> list[pa.Field]:
        labels, score = pa.list_(pa.string()), pa.float32()
        fields = [("labels", labels), ("scores", pa.list_(score))]
        fields += [("label", pa.string()), ("score", score)] if self.tells_best else []
        return [pa.field(*field) for field in [*fields, *([] if self.options.threshold is None else [ABOVE])]]

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.options), **self.length.settings}

    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: "Tokenizer") -> Prepared:
        texts = columns[0]
        errors: dict[int, RowError] = {}
        labels: list[Any] = [self.options.candidate_labels] * len(texts)
        if (column := self.options.labels_column) is not None:
            labels = columns[1].to_pylist()
            if_empty = RowError("prepare", "no_labels", f"column {column!r} has no label in this row")
            errors = unanswerable_lists(labels, column, "label", if_empty)
        errors |= unanswerable(texts, self.text_column)
        rows = [row for row in range(len(texts)) if row not in errors]
        premises = token_arrays([texts[row].as_py() for row in rows], tokenizer, add_special_tokens=False)
        hypothesis_ids = self._hypotheses({label for row in rows for label in labels[row]}, tokenizer)
        template = PairTemplate.of(tokenizer)
        num_input, num_truncated = np.zeros((2, len(texts)), dtype=np.int32)
        asked: list[tuple[int, int, Ints]] = []
        for row, premise in zip(rows, premises, strict=True):
            hypotheses = [hypothesis_ids[label] for label in labels[row]]
            room = self._room(hypotheses, template, premise)
            if room < 1:
                errors[row] = RowError(
                    "prepare", "too_long", "a label leaves no room for the text. Shorten the labels."
                )
                continue
            if self.length.truncation == "error" and room < len(premise):
                errors[row] = _too_long(len(premise), room)
                continue
            num_truncated[row] = len(premise) - room
            read = premise[self.length.kept(len(premise), room)].tolist()
            pairs = [np.array(template.fill(read, hypothesis), np.int32) for hypothesis in hypotheses]
            num_input[row] = sum(map(len, pairs))
            asked += [(row, piece, pair) for piece, pair in enumerate(pairs)]
        notes = pa.table({"labels": pa.array(labels, pa.list_(pa.string()))}) if self.options.labels_column else None
        return Prepared(request_table(asked), num_input, num_truncated, errors, notes)

    def _hypotheses(self, labels: set[str], tokenizer: "Tokenizer") -> dict[str, list[int]]:
        in_order = sorted(labels)
        texts = [self.options.hypothesis_template.format(label) for label in in_order]
        return dict(zip(in_order, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True))

    def _room(self, hypotheses: Sequence[list[int]], template: PairTemplate, premise: Ints) -> int:
        """Return how many tokens of the premise are read: the same for all labels, so as many as fit the longest."""
        if self.length.most is None:
            return len(premise)
        return min(len(premise), self.length.most - template.num_tokens - max(map(len, hypotheses)))

    def ask(self, model: "SinglePass", token_ids: Sequence[Sequence[int]]) -> Mapping[str, pa.Array]:
        return {"values": pa.array(list(model.classify(token_ids).numpy()), pa.list_(pa.float32()))}

    def finish(self, answered: Answered, tokenizer: "Tokenizer") -> list[pa.Array]:  # noqa: ARG002
        rows: list[dict[str, Any]] = [{}] * answered.num_rows
        logits = answered.results["values"].combine_chunks().flatten().to_numpy().reshape(-1, self.num_classes)
        pieces = enumerate(answered.results["row"].to_pylist())
        for row, group in groupby(pieces, key=lambda piece: piece[1]):
            own = self._labels_of(row, answered.notes)
            row_scores = self.scores(logits[[number for number, _ in group]])
            order = np.argsort(-row_scores, kind="stable")
            labels, scores = [own[i] for i in order], row_scores[order].tolist()
            rows[row] = {"labels": labels, "scores": scores, "label": labels[0], "score": scores[0]}
            if self.options.threshold is not None:
                num_above = int((row_scores > self.options.threshold).sum())
                rows[row][ABOVE[0]] = labels[:num_above]
        return [pa.array([row.get(field.name) for row in rows], field.type) for field in self.output_fields()]

    def _labels_of(self, row: int, notes: pa.Table | None) -> Sequence[str]:
        if notes is None:
            assert self.options.candidate_labels is not None
            return self.options.candidate_labels
        return notes["labels"][row].as_py()

    def scores(self, logits: Values) -> Values:
        """Return one score for each label of a row, from logits [labels, classes]."""
        if self.options.multi_label or len(logits) == 1:
            return softmax(logits[:, [self.contradiction, self.entailment]])[:, 1]
        return softmax(logits[:, self.entailment])


def _check(options: ZeroShotOptions) -> None:
    problems = []
    if (options.candidate_labels is None) == (options.labels_column is None):
        problems.append(
            "task_options: set one of candidate_labels (labels of every row) and labels_column (each row's)."
        )
    if options.candidate_labels is not None and not all(label.strip() for label in options.candidate_labels or [""]):
        problems.append("task_options.candidate_labels: needs at least one label, and none of white space alone.")
    if options.threshold is not None and not options.multi_label:
        problems.append(
            "task_options.threshold: is for multi_label: true, where each label has a score of its own. Set that too, "
            "or leave the threshold out."
        )
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        problems.append(f"task_options.threshold: is {options.threshold}, must be between 0 and 1, as scores are.")
    try:
        # Not {:>9999999999}, which asks for 10 GB a label.
        says_label = fields_of(options.hypothesis_template) == ["{}"]
    except ValueError:
        says_label = False
    if not says_label:
        problems.append(
            f"task_options.hypothesis_template: {options.hypothesis_template!r} has not one {{}} where the label goes."
        )
    if problems:
        raise ConfigError("\n".join(problems))


def _too_long(num_tokens: int, room: int) -> RowError:
    return RowError(
        "prepare",
        "too_long",
        f"{num_tokens} tokens, and the longest label leaves room for {room}. Shorten the text, or set "
        "task_options.truncation to right or left.",
    )


def _nli_columns(spec: TaskSpec) -> tuple[int, int]:
    """Return the logits' columns of entailment and contradiction, found by name.

    Raises: ConfigError where no label is entailment.
    """
    columns = {label.lower(): column for label, column in spec.checkpoint.config.label2id.items()}
    entailment = next((column for label, column in columns.items() if label.startswith("entail")), None)
    if entailment is None:
        raise ConfigError(
            f"model: zero-shot-classification needs a checkpoint trained on NLI, with a label entailment; this one has "
            f"{', '.join(spec.checkpoint.config.label2id)}. Use one such as bart-large-mnli, or mend id2label in its "
            "config.json."
        )
    opposite = -1 if entailment == 0 else 0  # where no label is named contradiction: the usual column
    contradiction = next((column for label, column in columns.items() if label.startswith("contradict")), opposite)
    return entailment, contradiction
