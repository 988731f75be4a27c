"""Scoring: a text and a target in, the target's log-likelihood out, in nats; or of several targets, and the best.

An encoder-decoder reads the text and scores each token of the target, as the reference's loss of labels=target does. A
decoder-only model scores the target as the text's continuation, which is that loss where labels of -100 mask the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from batchloom.pipelines.errors import ConfigError, RowError
from batchloom.pipelines.tasks.base import (
    TARGET_LENGTHS,
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
from batchloom.pipelines.tasks.cures import Cure
from batchloom.pipelines.tasks.length import InputLength, LengthOptions, too_long
from batchloom.pipelines.tasks.likelihoods import exp, total, values_of, why_not_finite
from batchloom.pipelines.tasks.options import read_options
from batchloom.pipelines.tasks.targets import TargetReader, pieces_of
from batchloom.pipelines.tasks.texts import no_tokens, unanswerable, unanswerable_lists

if TYPE_CHECKING:
    from batchloom.models import SinglePass, Tokenizer

PER_TOKEN = "token_log_likelihoods"
PLACES = "places"
"""Of each of a row's targets, in the notes of its first piece: which of the distinct ones it is."""


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(LengthOptions):
    """`task_options` of a scoring job."""

    target_column: str | None = None
    """A column with a target for each row: texts."""
    targets_column: str | None = None
    """A column with several targets for each row: lists of texts."""
    best_by: Literal["sum", "mean"] | None = None
    """Which target is the best: the one with the highest log-likelihood, or with the highest one a token, so that none
    loses by its length. None: sum."""
    per_token: bool = False
    """Adds the column `token_log_likelihoods`."""


@dataclass(frozen=True, kw_only=True)
class Scoring(Task):
    """The scoring task; pipelines/tasks/base.py Task documents the methods."""

    # For decoders, to whose texts a target is joined: encoder-decoders truncate theirs, and no target is.
    cures: ClassVar[tuple[Cure, ...]] = (Cure("too_long", "truncation", "error", "left"),)

    text_column: str
    options: ScoringOptions
    is_encoder_decoder: bool
    length: InputLength
    most_positions: int | None

    @classmethod
    def create(cls, spec: TaskSpec) -> "Scoring":
        refuse_generation(spec)
        options = read_options(spec.task, spec.options, ScoringOptions)
        _check(options, spec.input.text_column)
        has_encoder = spec.checkpoint.has_encoder
        return cls(
            architecture=with_head(spec, "ForConditionalGeneration" if has_encoder else "ForCausalLM"),
            text_column=spec.input.text_column,
            options=options,
            is_encoder_decoder=has_encoder,
            length=InputLength.of(spec, options, "right" if has_encoder else "error"),
            most_positions=spec.checkpoint.max_positions,
        )

    @property
    def target_column(self) -> str:
        return self.options.targets_column or self.options.target_column or ""

    @property
    def is_list(self) -> bool:
        """Whether a row has several targets."""
        return self.options.targets_column is not None

    def input_columns(self) -> Mapping[str, ColumnKind]:
        target = ColumnKind.TEXTS if self.is_list else ColumnKind.TEXT
        return {self.text_column: ColumnKind.TEXT, self.target_column: target}

    def output_fields(self) -> list[pa.Field]:
        per_token = pa.list_(pa.float32())
        if not self.is_list:
            fields = [("log_likelihood", pa.float64()), ("num_scored_tokens", pa.int32()), ("perplexity", pa.float64())]
        else:
            sums, counts = pa.list_(pa.float64()), pa.list_(pa.int32())
            fields = [("log_likelihoods", sums), ("num_scored_tokens", counts), ("best", pa.int32())]
            per_token = pa.list_(per_token)
        return [pa.field(*own) for own in [*fields, (PER_TOKEN, per_token)][: 3 + self.options.per_token]]

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.options), "best_by": self.options.best_by or "sum", **self.length.settings}

    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: "Tokenizer") -> Prepared:
        texts = columns[0].to_pylist()
        if self.is_list:
            targets = columns[1].to_pylist()
            column = self.target_column
            if_empty = RowError("prepare", "no_targets", f"column {column!r} has no target in this row")
            errors = unanswerable_lists(targets, column, "target", if_empty)
        else:
            targets, errors = [[one] for one in columns[1].to_pylist()], unanswerable(columns[1], self.target_column)
        errors |= unanswerable(columns[0], self.text_column)
        rows = [row for row in range(len(texts)) if row not in errors]
        reading = TargetReader.of(tokenizer, self.is_encoder_decoder)
        sources = reading.sources([texts[row] for row in rows])
        scored = iter(reading.targets([(texts[row], target) for row in rows for target in targets[row]]))
        num_input, num_truncated = np.zeros((2, len(texts)), dtype=np.int32)
        asked: list[tuple[int, int, Ints]] = []
        lengths: list[list[int]] = []
        places: list[list[int]] = []
        for row, whole in zip(rows, sources, strict=True):
            own = [next(scored) for _ in targets[row]]
            source = self._fitted(whole, own, reading.around)
            if isinstance(source, RowError):
                errors[row] = source
                continue
            num_truncated[row] = len(whole) - len(source)
            # Of equal targets one is scored: the last bits of a score depend on what is computed beside it.
            distinct = {target.tobytes(): target for target in own}
            number_of = {key: number for number, key in enumerate(distinct)}
            for piece, part in enumerate(pieces_of([*distinct.values()])):
                places.append([number_of[target.tobytes()] for target in own] if piece == 0 else [])
                asked.append((row, piece, np.concatenate([source, *part])))
                lengths.append([len(target) for target in part])
                num_input[row] += len(asked[-1][2])
        # Rows with the same source stand together: what is computed of it serves them all.
        order = sorted(range(len(asked)), key=lambda number: asked[number][2][: -sum(lengths[number])].tobytes())
        of_targets = pa.array([lengths[number] for number in order], TARGET_LENGTHS.type)
        requests = request_table([asked[number] for number in order]).append_column(TARGET_LENGTHS, of_targets)
        of_row = pa.array([places[number] for number in order], pa.list_(pa.int32()))
        notes = requests.select(["row", "piece", TARGET_LENGTHS.name]).append_column(PLACES, of_row)
        return Prepared(requests, num_input, num_truncated, errors, notes)

    def _fitted(self, source: Ints, targets: Sequence[Ints], around: tuple[int, int]) -> Ints | RowError:
        """Return what is read of a source, or why it cannot be scored with these targets."""
        longest = max(map(len, targets))
        if not len(source):
            return no_tokens(self.text_column)
        if not min(map(len, targets)):
            return no_tokens(self.target_column)
        if self.is_encoder_decoder:
            if self.most_positions is not None and longest > self.most_positions:
                return too_long(longest, self.most_positions, "That is a target, which is not truncated: shorten it.")
            return self.length.error(len(source)) or source[self.length.places(len(source), around)]
        if self.length.most is None:
            return source
        room = self.length.most - longest  # for what the target continues
        if room <= around[0]:
            advice = "That is a target, which leaves no room for the text: shorten it."
            return too_long(longest, self.length.most, advice)
        if len(source) > room and self.length.truncation == "error":
            advice = "That is the text with its longest target: shorten it, or set task_options.truncation to left."
            return too_long(len(source) + longest, self.length.most, advice)
        return source[replace(self.length, most=room).places(len(source), around)]

    def ask_targets(
        self, model: "SinglePass", sources: Sequence[Sequence[int]], targets: Sequence[Sequence[Sequence[int]]]
    ) -> Mapping[str, pa.Array]:
        return {"values": values_of(model.score_targets(sources, targets))}

    def finish(self, answered: Answered, tokenizer: "Tokenizer") -> list[pa.Array]:  # noqa: ARG002
        rows: list[dict[str, Any]] = [{}] * answered.num_rows
        for row, pieces in answered.pieces():
            tokens = [
                own for values, note in pieces for own in np.split(values, np.cumsum(note[TARGET_LENGTHS.name])[:-1])
            ]
            tokens = [tokens[place] for place in pieces[0][1][PLACES]]
            rows[row] = self._several(tokens) if self.is_list else self._one(tokens[0])
        columns = {field: [row.get(field.name) for row in rows] for field in self.output_fields()}
        return [pa.array(column, field.type, from_pandas=True) for field, column in columns.items()]

    def why_not_finite(self, column: str) -> str:
        return why_not_finite(column)

    def _one(self, tokens: Values) -> dict[str, Any]:
        log_likelihood = total(tokens)
        return {
            "log_likelihood": log_likelihood,
            "num_scored_tokens": len(tokens),
            "perplexity": exp(-log_likelihood / len(tokens)),
            PER_TOKEN: tokens,
        }

    def _several(self, tokens: Sequence[Values]) -> dict[str, Any]:
        """Return the columns of a row; a target of probability 0 is null beside others, and alone no answer."""
        sums, counts = np.array([total(own) for own in tokens]), [len(own) for own in tokens]
        ranked = np.divide(sums, counts) if self.options.best_by == "mean" else sums
        is_possible = np.isfinite(sums)
        return {
            "log_likelihoods": np.where(is_possible, sums, np.nan) if is_possible.any() else sums,
            "num_scored_tokens": counts,
            "best": int(ranked.argmax()),
            PER_TOKEN: tokens,
        }


def _check(options: ScoringOptions, text_column: str) -> None:
    problems = []
    if (options.target_column is None) == (options.targets_column is None):
        problems.append(
            "task_options: set one of target_column (a column of texts) and targets_column (one of lists of texts)."
        )
    if text_column in (options.target_column, options.targets_column):
        problems.append(
            f"task_options: the targets are in {text_column!r}, as input.text_column is. Name another column."
        )
    if options.best_by is not None and options.targets_column is None:
        problems.append("task_options.best_by: is for targets_column, where there are several to choose from.")
    if problems:
        raise ConfigError("\n".join(problems))
