"""Feature extraction: a text in, hidden states of any checkpoint out: `embedding`, a vector, or those of each token."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from batchloom import models
from batchloom.models.errors import RequestError
from batchloom.models.single_pass.state_outputs import Pooling, StackName, StateOutput, StateOutputs
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks.base import (
    Answered,
    AnswerSize,
    ColumnKind,
    Prepared,
    Task,
    TaskSpec,
    refuse_generation,
    without_head,
)
from batchloom.pipelines.tasks.length import InputLength, LengthOptions
from batchloom.pipelines.tasks.options import read_options
from batchloom.pipelines.tasks.states import StateColumns
from batchloom.pipelines.tasks.texts import prepare_texts

if TYPE_CHECKING:
    from batchloom.models import SinglePass, Tokenizer

# Of a row that may be asked for: a unit's numbers are in one Arrow array, which has 2^31 at most.
MOST_ROW_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class FeatureExtractionOptions(LengthOptions):
    """`task_options` of a feature-extraction job."""

    pooling: Literal[Pooling, "none"] | tuple[Literal[Pooling, "none"], ...] = "mean"
    """How tokens' vectors become one, the column `embedding`: their mean, the first token's, or the last token's; none:
    those of each token. A list gives a column for each: embedding_mean, embedding_cls."""
    normalize: bool = False
    """Scale each vector to length 1, so that dot products are cosines."""
    dtype: Literal["float32", "float16"] = "float32"
    """The column's dtype; the model computes in engine.dtype."""
    stack: StackName | None = None
    """Whose hidden states. None: the decoder's, and the encoder's of the Blenderbots, whose decoders demand a reply."""
    layer: int = -1
    """After which layer they are pooled. 0: before the first one; negative: from the end."""
    hidden_states: bool = False
    """Adds the column `hidden_states`, of each layer and token: [layers + 1, tokens, width]."""
    attentions: bool = False
    """Adds the column `attentions`, [layers, heads, tokens, tokens], and where a decoder stands beside its encoder
    `cross_attentions`."""
    max_row_bytes: int = 1 << 26
    """Bytes of a row's vectors and weights at most: a row that would have more is an error."""


@dataclass(frozen=True, kw_only=True)
class FeatureExtraction(Task):
    """The feature-extraction task; pipelines/tasks/base.py Task documents the methods."""

    text_column: str
    options: FeatureExtractionOptions
    columns: StateColumns
    length: InputLength

    @classmethod
    def create(cls, spec: TaskSpec) -> "FeatureExtraction":
        refuse_generation(spec)
        options = read_options(spec.task, spec.options, FeatureExtractionOptions)
        length = InputLength.of(spec, options, "right")
        outputs = _outputs(options)
        asked = _asked(spec, options, tuple(outputs.values()))
        if options.attentions and asked.stack == "decoder" and spec.checkpoint.has_encoder:
            outputs["cross_attentions"] = "cross_attentions"
            asked = replace(asked, outputs=tuple(outputs.values()))
        columns = StateColumns(
            asked=asked,
            names=tuple(outputs),
            dtype=options.dtype,
            max_row_bytes=options.max_row_bytes,
            max_tokens=length.most,
        )
        _check_room(spec, columns)
        return cls(
            architecture=without_head(spec),
            text_column=spec.input.text_column,
            options=options,
            columns=columns,
            length=length,
        )

    @property
    def answer_size(self) -> AnswerSize | None:
        return self.columns.size

    def input_columns(self) -> Mapping[str, ColumnKind]:
        return {self.text_column: ColumnKind.TEXT}

    def output_fields(self) -> list[pa.Field]:
        return self.columns.fields()

    def settings(self) -> dict[str, Any]:
        asked = self.columns.asked
        return {**asdict(self.options), "stack": asked.stack, "layer": asked.layer, **self.length.settings}

    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: "Tokenizer") -> Prepared:
        """Prepare the texts; longer ones are truncated, and the cut counted, unless they are to be errors."""
        prepared = prepare_texts(columns[0], self.text_column, tokenizer, length=self.length)
        return self.columns.without_large(prepared)

    def ask(self, model: "SinglePass", token_ids: Sequence[Sequence[int]]) -> Mapping[str, pa.Array]:
        asked = self.columns.asked
        found = model.states(token_ids, asked.outputs, asked.layer, asked.stack, self.options.normalize)
        return self.columns.results_of(found, token_ids)

    def finish(self, answered: Answered, tokenizer: "Tokenizer") -> list[pa.Array]:  # noqa: ARG002
        return self.columns.of(answered)

    def why_not_finite(self, column: str) -> str:  # noqa: ARG002
        if self.options.dtype != "float16":
            return ""
        return "float16 holds numbers up to 65,504: set task_options.dtype to float32, in another output."


def _outputs(options: FeatureExtractionOptions) -> dict[str, StateOutput]:
    """Return what is asked for, by column. Raises: ConfigError where that is nothing, or twice the same."""
    is_one = isinstance(options.pooling, str)
    poolings = [options.pooling] if isinstance(options.pooling, str) else list(options.pooling)
    if len(set(poolings)) < len(poolings):
        raise ConfigError(f"task_options.pooling: names one twice in {', '.join(poolings)}. Leave it out.")
    outputs: dict[str, StateOutput] = {
        "embedding" if is_one else f"embedding_{pooling}": "per_token" if pooling == "none" else pooling
        for pooling in poolings
    }
    if options.hidden_states:
        outputs["hidden_states"] = "hidden_states"
    if options.attentions:
        outputs["attentions"] = "attentions"
    if not outputs:
        raise ConfigError("task_options.pooling: is an empty list, and nothing else is asked for. Name one.")
    return outputs


def _asked(spec: TaskSpec, options: FeatureExtractionOptions, outputs: Sequence[StateOutput]) -> StateOutputs:
    found = spec.checkpoint
    try:
        return StateOutputs.of(found.config, found.has_encoder, outputs, options.layer, options.stack)
    except RequestError as error:
        raise ConfigError(f"task_options.{error}") from error


def _check_room(spec: TaskSpec, columns: StateColumns) -> None:
    """Raise ConfigError where a limit is out of range, or no row could be within it."""
    limit = columns.max_row_bytes
    if not 1 <= limit <= MOST_ROW_BYTES:
        raise ConfigError(f"task_options.max_row_bytes: is {limit:,}, must be from 1 to {MOST_ROW_BYTES:,}.")
    fewest = 1
    if columns.has_tokens:
        fewest = max(1, models.load_tokenizer(spec.checkpoint.pinned).num_special_tokens())
    if columns.longest < fewest:
        raise ConfigError(
            f"task_options.max_row_bytes: is {limit:,}, and a row of {fewest} tokens, the fewest that there are, has "
            f"{columns.num_bytes(fewest):,} bytes of {', '.join(columns.names)}. Raise it, or ask for less."
        )
