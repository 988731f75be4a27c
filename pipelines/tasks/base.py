"""The interface between tasks and the pipeline. It knows Arrow; no ray, no torch, no storage."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from batchloom import models
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import ConfigError, RowError
from batchloom.pipelines.tasks.cures import Cure

if TYPE_CHECKING:
    from batchloom.models import CheckpointInfo, SinglePass

Values = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]

# row: index into the columns that `prepare` was given; piece: counts a row's requests from 0 (labels, chunks, windows).
# Beside these there may be ANSWER_PREFIX of pipelines/fields.py.
REQUEST_SCHEMA = pa.schema(
    [pa.field("row", pa.int32()), pa.field("piece", pa.int32()), pa.field("token_ids", pa.list_(pa.int32()))]
)

# A column that requests have more where token_ids are a source and targets, one after the other: the targets' lengths.
TARGET_LENGTHS = pa.field("target_lengths", pa.list_(pa.int32()))


class ColumnKind(Enum):
    """The kinds of values that a column read by a task may hold."""

    TEXT = "text"
    TEXTS = "lists of texts"
    TEXT_OR_TEXTS = "text or lists of texts"
    VALUE = "text, numbers, dates or truth values"


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A job's settings for its task, and the checkpoint's description."""

    task: str
    input: InputConfig
    options: Mapping[str, Any]
    """`task_options` of the job file."""
    generation: Mapping[str, Any]
    """`generation` of the job file."""
    checkpoint: "CheckpointInfo"


@dataclass(frozen=True)
class Prepared:
    """A task's requests for a unit's rows."""

    requests: pa.Table
    """REQUEST_SCHEMA; a row may have several requests, or none if it has an error."""
    num_input_tokens: Ints
    """[rows]: tokens that the model will read for each row."""
    num_truncated_tokens: Ints
    """[rows]: tokens that were truncated."""
    errors: Mapping[int, RowError]
    """The rows without requests, and the reason for each."""
    notes: pa.Table | None = None
    """Whatever `finish` needs beside the answers; passed to it unchanged."""


@dataclass(frozen=True)
class AnswerSize:
    """How many bytes large answers take at most, so that units and parts are cut smaller."""

    of_token: int
    """For each token of a row."""
    of_row: int


@dataclass(frozen=True)
class Answered:
    """The results of a unit's requests."""

    results: pa.Table
    """RESULT_SCHEMA of replicas/results.py, sorted by row, piece and sample; no row of it has an error."""
    num_rows: int
    notes: pa.Table | None
    """The notes of `prepare`."""

    def pieces(self) -> Iterator[tuple[int, list[tuple[Values, dict[str, Any]]]]]:
        """Yield each answered row with its pieces in order: a piece's values, and the note of that row and piece, in
        which lists are arrays."""
        assert self.notes is not None
        number_of = {place: number for number, place in enumerate(_places(self.notes))}
        cells = {name: cells_of(self.notes[name]) for name in self.notes.column_names}
        values = cells_of(self.results["values"])
        for row, own in groupby(enumerate(_places(self.results)), key=lambda answer: answer[1][0]):
            numbers = [(answer, number_of[place]) for answer, place in own]
            yield (
                row,
                [(values(answer), {name: cell(note) for name, cell in cells.items()}) for answer, note in numbers],
            )


def _places(table: pa.Table) -> Iterator[tuple[int, int]]:
    return zip(table["row"].to_pylist(), table["piece"].to_pylist(), strict=True)


def cells_of(column: pa.ChunkedArray) -> Callable[[int], Any]:
    """Return what gives a cell of a column: of lists of numbers an array, without a copy of it."""
    whole = column.combine_chunks()
    if not pa.types.is_list(whole.type) or pa.types.is_string(whole.type.value_type):
        return lambda number: whole[number].as_py()
    offsets, values = whole.offsets.to_numpy(), whole.values.to_numpy(zero_copy_only=False)
    return lambda number: values[offsets[number] : offsets[number + 1]]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Converts a unit's rows to requests, and their results to columns. Picklable: it is sent to the workers."""

    architecture: str
    """The class that the checkpoint is loaded as."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Resolved generation parameters; empty where nothing is generated."""
    log_probs: bool = False
    """Whether `finish` needs the log-probability of each generated token: the `values` of the results."""
    num_prefix_tokens: int = 0
    """Tokens that every answer begins with and that are not generated; 0 where each row's are other ones."""
    cures: ClassVar[tuple[Cure, ...]] = ()
    """The options that answer rows which are errors without them."""

    @classmethod
    @abstractmethod
    def create(cls, spec: TaskSpec) -> "Task":
        """Return the task that a job asks for. Raises: ConfigError for invalid options or an unsuitable checkpoint."""

    def beside(self, kept: Collection[str]) -> "Task":  # noqa: ARG002
        """Return the task as it is where these columns are kept: what it writes for convenience alone gives way."""
        return self

    @property
    def answer_size(self) -> AnswerSize | None:
        """How large answers may be; None: no larger than texts are."""
        return None

    @abstractmethod
    def input_columns(self) -> Mapping[str, ColumnKind]:
        """Return the columns that the task reads, in the order in which `prepare` takes them."""

    @abstractmethod
    def output_fields(self) -> list[pa.Field]:
        """Return the task's output columns. They do not depend on the rows, so parts of only nulls have them too."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return everything in the task that decides an answer, JSON-ready: part of the fingerprint."""

    @abstractmethod
    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: Any) -> Prepared:
        """Return the requests for a unit's rows; a row for which there can be none gets an error instead."""

    def ask(self, model: "SinglePass", token_ids: Sequence[Sequence[int]]) -> Mapping[str, pa.Array]:
        """Return a models.SinglePass's result for each request, as columns of RESULT_SCHEMA.

        Raises: NotImplementedError for tasks that generate; they do not need it.
        """
        raise NotImplementedError(f"{type(self).__name__} generates")

    def ask_targets(
        self, model: "SinglePass", sources: Sequence[Sequence[int]], targets: Sequence[Sequence[Sequence[int]]]
    ) -> Mapping[str, pa.Array]:
        """Return what `ask` returns, for requests with TARGET_LENGTHS.

        Raises: NotImplementedError for tasks without such requests.
        """
        raise NotImplementedError(f"{type(self).__name__} has no targets")

    def follow_up(self, results: pa.Table, tokenizer: Any) -> Prepared | None:  # noqa: ARG002
        """Return requests whose results replace those so far, or None where these are final."""
        return None

    @abstractmethod
    def finish(self, answered: Answered, tokenizer: Any) -> list[pa.Array]:
        """Return the values of `output_fields`, null for rows without results."""

    def why_not_finite(self, column: str) -> str:  # noqa: ARG002
        """Return what to say of a value of `finish` that is NaN or infinite, though the model's are not."""
        return ""


def with_head(spec: TaskSpec, head: str) -> str:
    """Return the architecture to load, which ends in `head`.

    A bare model counts as its family's language model, whose head is the embedding: BartModel ->
    BartForConditionalGeneration, BloomModel -> BloomForCausalLM. Raises: ConfigError where the checkpoint has another
    head, naming the tasks that it can do.
    """
    family, own = _family_and_head(spec.checkpoint.architecture)
    if own == "Model":
        own = spec.checkpoint.family.heads[0]
    if own != head:
        raise ConfigError(
            f"model: {spec.task} needs one of {', '.join(models.architectures(head))}; found "
            f"{spec.checkpoint.architecture}. "
            f"Use another checkpoint, or a task that this one can do: {', '.join(TASKS_OF_HEADS[own])}."
        )
    return family + own


def without_head(spec: TaskSpec) -> str:
    """Return the architecture of the bare model inside any checkpoint; a decoder without its encoder stays what it is,
    as there is no bare class of it."""
    family, head = _family_and_head(spec.checkpoint.architecture)
    return family + (head if spec.checkpoint.config.encoder and not spec.checkpoint.has_encoder else "Model")


def _family_and_head(architecture: str) -> tuple[str, str]:
    """Split an architecture: BartForCausalLM -> Bart, ForCausalLM; BartModel -> Bart, Model."""
    family, found, rest = architecture.partition("For")
    return (family, found + rest) if found else (architecture.removesuffix("Model"), "Model")


TASKS_OF_HEADS = {
    "ForConditionalGeneration": (
        "summarization", "text2text-generation", "conversational (dialogue models)", "fill-mask (with a mask token)",
        "perplexity", "scoring", "feature-extraction",
    ),
    "ForCausalLM": ("text-generation", "perplexity", "scoring", "feature-extraction"),
    "ForSequenceClassification": ("text-classification", "zero-shot-classification", "feature-extraction"),
    "ForTokenClassification": ("token-classification", "feature-extraction"),
    "ForQuestionAnswering": ("question-answering", "feature-extraction"),
}  # fmt: skip


def refuse_generation(spec: TaskSpec) -> None:
    """Raise ConfigError where a task that generates nothing is given generation parameters."""
    if spec.generation:
        raise ConfigError(
            f"generation: {spec.task} generates no text, so {', '.join(spec.generation)} would do nothing. "
            "Remove the section."
        )


def request_table(asked: Sequence[tuple[int, int, Sequence[int] | Ints]]) -> pa.Table:
    """Return a table of REQUEST_SCHEMA from (row, piece, token ids)."""
    columns = list(zip(*asked, strict=True)) or [(), (), ()]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, REQUEST_SCHEMA, strict=True)],
        schema=REQUEST_SCHEMA,
    )


def lists_of(values: Mapping[int, pa.Array], num_rows: int, kind: pa.DataType) -> pa.ListArray:
    """Return a column of lists of `kind` from the lists of some rows, in their order; it is null in the others."""
    lengths = [len(values[row]) if row in values else 0 for row in range(num_rows)]
    offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())
    is_null = pa.array([row not in values for row in range(num_rows)], pa.bool_())
    whole = pa.concat_arrays([pa.array([], kind), *values.values()])
    return pa.ListArray.from_arrays(offsets, whole, mask=is_null)
