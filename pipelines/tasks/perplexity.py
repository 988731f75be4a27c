"""Perplexity: a text in, its log-likelihood out, in nats, by a language model.

A decoder-only model scores every token but the first, given those before it. An encoder-decoder reads the whole text
and scores every token of it as its own reconstruction, which is what transformers calls the loss of labels=input_ids.
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
    Ints,
    Prepared,
    Task,
    TaskSpec,
    refuse_generation,
    request_table,
    with_head,
)
from batchloom.pipelines.tasks.length import InputLength, LengthOptions
from batchloom.pipelines.tasks.likelihoods import exp, total, values_of, why_not_finite
from batchloom.pipelines.tasks.options import read_options
from batchloom.pipelines.tasks.texts import num_around, token_arrays, unanswerable
from batchloom.pipelines.tasks.windows import windows

if TYPE_CHECKING:
    from batchloom.models import SinglePass, Tokenizer


@dataclass(frozen=True, kw_only=True)
class PerplexityOptions(LengthOptions):
    """`task_options` of a perplexity job."""

    stride: int | None = None
    """Tokens by which the window moves over a text longer than the model. None: half a window. Smaller gives each token
    more context, and is slower."""
    per_token: bool = False
    """Adds the column `token_log_likelihoods`."""


@dataclass(frozen=True, kw_only=True)
class Perplexity(Task):
    """The perplexity task; pipelines/tasks/base.py Task documents the methods."""

    text_column: str
    options: PerplexityOptions
    is_encoder_decoder: bool
    length: InputLength

    @classmethod
    def create(cls, spec: TaskSpec) -> "Perplexity":
        refuse_generation(spec)
        options = read_options(spec.task, spec.options, PerplexityOptions)
        length = InputLength.of(spec, options, None)
        if options.stride is not None and not 1 <= options.stride <= length.window:
            raise ConfigError(
                f"task_options.stride: is {options.stride}, must be from 1 to {length.window}, the window."
            )
        return cls(
            architecture=with_head(spec, "ForConditionalGeneration" if spec.checkpoint.has_encoder else "ForCausalLM"),
            text_column=spec.input.text_column,
            options=options,
            is_encoder_decoder=spec.checkpoint.has_encoder,
            length=length,
        )

    @property
    def stride(self) -> int:
        return self.length.window // 2 if self.options.stride is None else self.options.stride

    def input_columns(self) -> Mapping[str, ColumnKind]:
        return {self.text_column: ColumnKind.TEXT}

    def output_fields(self) -> list[pa.Field]:
        fields = [
            pa.field("log_likelihood", pa.float64()),
            pa.field("num_scored_tokens", pa.int32()),
            pa.field("perplexity", pa.float64()),
        ]
        per_token = pa.field("token_log_likelihoods", pa.list_(pa.float32()))
        return [*fields, per_token] if self.options.per_token else fields

    def settings(self) -> dict[str, Any]:
        return {
            **asdict(self.options),
            "stride": self.stride,
            "window": self.length.window,
            "truncation": self.length.truncation,
        }

    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: "Tokenizer") -> Prepared:
        texts = columns[0]
        errors = unanswerable(texts, self.text_column)
        rows = [row for row in range(len(texts)) if row not in errors]
        num_input, num_truncated = np.zeros((2, len(texts)), dtype=np.int32)
        window, around = self.length.window, num_around(tokenizer)
        asked: list[tuple[int, int, Ints]] = []
        noted: list[dict[str, int]] = []
        for row, whole in zip(rows, token_arrays([texts[row].as_py() for row in rows], tokenizer), strict=True):
            if (error := self.length.error(len(whole))) is not None:
                errors[row] = error
                continue
            ids = whole[self.length.places(len(whole), around)]
            if len(ids) < 2:
                errors[row] = RowError("prepare", "too_short", f"{len(ids)} tokens; 2 are needed to score one of them")
                continue
            num_truncated[row] = len(whole) - len(ids)
            before = 0  # tokens that earlier windows have scored or had as context
            for piece, (start, stop) in enumerate(windows(len(ids), window, window - self.stride)):
                asked.append((row, piece, ids[start:stop]))
                noted.append({"row": row, "piece": piece, "num_new": stop - before})
                num_input[row] += stop - start
                before = stop
        notes = pa.Table.from_pylist(noted, pa.schema([(name, pa.int32()) for name in ("row", "piece", "num_new")]))
        return Prepared(request_table(asked), num_input, num_truncated, errors, notes)

    def ask(self, model: "SinglePass", token_ids: Sequence[Sequence[int]]) -> Mapping[str, pa.Array]:
        scores = model.score(token_ids, token_ids) if self.is_encoder_decoder else model.score(token_ids)
        return {"values": values_of([score] for score in scores)}

    def finish(self, answered: Answered, tokenizer: "Tokenizer") -> list[pa.Array]:  # noqa: ARG002
        """Return the scores; of each window, only those of its last tokens, which no window before it has scored."""
        tokens: list[np.ndarray[Any, np.dtype[np.float32]] | None] = [None] * answered.num_rows
        for row, in_windows in answered.pieces():
            tokens[row] = np.concatenate([values[-note["num_new"] :] for values, note in in_windows])
        sums = [None if own is None else total(own) for own in tokens]
        counts = [None if own is None else len(own) for own in tokens]
        perplexities = [
            None if own is None or num is None else exp(-own / num) for own, num in zip(sums, counts, strict=True)
        ]
        columns: list[pa.Array]
        columns = [pa.array(sums, pa.float64()), pa.array(counts, pa.int32()), pa.array(perplexities, pa.float64())]
        if self.options.per_token:
            columns.append(pa.array(tokens, pa.list_(pa.float32()), from_pandas=True))
        return columns

    def why_not_finite(self, column: str) -> str:
        return why_not_finite(column)
