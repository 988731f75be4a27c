"""Feature extraction: a text in, `embedding` out, one vector from the last hidden states of any checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from batchloom.pipelines.tasks.base import (
    Answered,
    ColumnKind,
    Prepared,
    Task,
    TaskSpec,
    refuse_generation,
    without_head,
)
from batchloom.pipelines.tasks.length import InputLength, LengthOptions
from batchloom.pipelines.tasks.options import read_options
from batchloom.pipelines.tasks.texts import prepare_texts

if TYPE_CHECKING:
    from batchloom.models import SinglePass, Tokenizer


@dataclass(frozen=True, kw_only=True)
class FeatureExtractionOptions(LengthOptions):
    """`task_options` of a feature-extraction job."""

    pooling: Literal["mean", "cls", "last"] = "mean"
    """How tokens' vectors become one: their mean, the first token's, or the last token's."""
    normalize: bool = False
    """Scale each vector to length 1, so that dot products are cosines."""
    dtype: Literal["float32", "float16"] = "float32"
    """The column's dtype; the model computes in engine.dtype."""


@dataclass(frozen=True, kw_only=True)
class FeatureExtraction(Task):
    """The feature-extraction task; pipelines/tasks/base.py Task documents the methods."""

    text_column: str
    options: FeatureExtractionOptions
    length: InputLength

    @classmethod
    def create(cls, spec: TaskSpec) -> "FeatureExtraction":
        refuse_generation(spec)
        options = read_options(spec.task, spec.options, FeatureExtractionOptions)
        return cls(
            architecture=without_head(spec),
            text_column=spec.input.text_column,
            options=options,
            length=InputLength.of(spec, options, "right"),
        )

    def input_columns(self) -> Mapping[str, ColumnKind]:
        return {self.text_column: ColumnKind.TEXT}

    def output_fields(self) -> list[pa.Field]:
        return [pa.field("embedding", pa.list_(pa.float16() if self.options.dtype == "float16" else pa.float32()))]

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.options), **self.length.settings}

    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: "Tokenizer") -> Prepared:
        """Prepare the texts; longer ones are truncated, and the cut counted, unless they are to be errors."""
        return prepare_texts(columns[0], self.text_column, tokenizer, length=self.length)

    def ask(self, model: "SinglePass", token_ids: Sequence[Sequence[int]]) -> Mapping[str, pa.Array]:
        vectors = model.embed(token_ids, self.options.pooling, self.options.normalize)
        return {"values": pa.array(list(vectors.numpy()), pa.list_(pa.float32()))}

    def finish(self, answered: Answered, tokenizer: "Tokenizer") -> list[pa.Array]:  # noqa: ARG002
        number_of = {row: number for number, row in enumerate(answered.results["row"].to_pylist())}
        numbers = pa.array([number_of.get(row) for row in range(answered.num_rows)], pa.int64())
        vectors = answered.results["values"].combine_chunks().take(numbers)
        return [vectors.cast(self.output_fields()[0].type)]
