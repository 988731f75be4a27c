"""Text generation: a prompt in, `generated_text` out (the new text alone), by a decoder-only checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyarrow as pa

from batchloom.pipelines.tasks.answer_prefix import AnswerPrefix, columns_with, with_prefixes
from batchloom.pipelines.tasks.answers import AnswerColumns
from batchloom.pipelines.tasks.base import Answered, ColumnKind, Prepared, Task, TaskSpec, with_head
from batchloom.pipelines.tasks.cures import CUT, Cure
from batchloom.pipelines.tasks.generating import resolved_generation
from batchloom.pipelines.tasks.length import InputLength, LengthOptions
from batchloom.pipelines.tasks.options import read_options
from batchloom.pipelines.tasks.prompts import Template
from batchloom.pipelines.tasks.texts import prepare_texts

if TYPE_CHECKING:
    from batchloom.models import Tokenizer


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(LengthOptions):
    """`task_options` of text-generation and text2text-generation."""

    prompt_template: str | None = None
    """The prompt, with column names in braces: "{title}: {body}". None: input.text_column unchanged."""
    answer_prefix: str | None = None
    """What answers begin with: a text, or a template such as "{title}:"."""
    stop_strings: str | tuple[str, ...] | None = None
    """An answer ends with the token that completes one of these."""
    scores: bool = False
    """Adds the columns sequence_score and token_log_probs."""


@dataclass(frozen=True, kw_only=True)
class TextGeneration(Task):
    """The text-generation task; pipelines/tasks/base.py Task documents the methods."""

    cures: ClassVar[tuple[Cure, ...]] = (CUT,)

    text_column: str
    options: GenerationOptions
    prefix: str
    length: InputLength
    answer_prefix: AnswerPrefix | None

    @classmethod
    def create(cls, spec: TaskSpec) -> "TextGeneration":
        return cls.on(spec, with_head(spec, "ForCausalLM"))

    @classmethod
    def on(cls, spec: TaskSpec, architecture: str) -> Self:
        """Return the task on a checkpoint loaded as `architecture`. Raises: ConfigError for invalid options."""
        options = read_options(spec.task, spec.options, GenerationOptions)
        if options.prompt_template is not None:
            Template(options.prompt_template)
        stop = {} if options.stop_strings is None else {"stop_strings": options.stop_strings}
        generation = resolved_generation(spec, **stop)
        answer_prefix = AnswerPrefix.of(spec, options.answer_prefix, architecture, generation)
        return cls(
            architecture=architecture,
            generation=generation,
            num_prefix_tokens=0 if answer_prefix is None else answer_prefix.num_tokens,
            log_probs=options.scores,
            text_column=spec.input.text_column,
            options=options,
            prefix=spec.checkpoint.prefix,
            length=InputLength.of(spec, options, "error"),
            answer_prefix=answer_prefix,
        )

    @property
    def template(self) -> Template | None:
        return None if self.options.prompt_template is None else Template(self.options.prompt_template)

    def input_columns(self) -> Mapping[str, ColumnKind]:
        return columns_with(self._prompt_columns, self.answer_prefix)

    @property
    def _prompt_columns(self) -> Mapping[str, ColumnKind]:
        return {self.text_column: ColumnKind.TEXT} if self.template is None else self.template.columns

    def output_fields(self) -> list[pa.Field]:
        return self._columns.fields()

    @property
    def _columns(self) -> AnswerColumns:
        return AnswerColumns("generated_text", self.generation["num_return_sequences"] > 1, self.options.scores)

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.options), "prefix": self.prefix, **self.length.settings}

    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: "Tokenizer") -> Prepared:
        template, num_rows = self.template, len(columns[0])
        given = dict(zip(self.input_columns(), columns, strict=True))
        own = [given[name] for name in self._prompt_columns]
        prefixes = None if self.answer_prefix is None else self.answer_prefix.tokens(given, num_rows, tokenizer)
        prepared = prepare_texts(
            own[0] if template is None else template.fill(own, num_rows),
            ", ".join(self._prompt_columns),
            tokenizer,
            prefix=self.prefix,
            length=self.length,
            room=None if self.answer_prefix is None or prefixes is None else self.answer_prefix.room(prefixes),
        )
        return prepared if prefixes is None else with_prefixes(prepared, prefixes)

    def finish(self, answered: Answered, tokenizer: "Tokenizer") -> list[pa.Array]:
        return self._columns.of(answered, tokenizer)
