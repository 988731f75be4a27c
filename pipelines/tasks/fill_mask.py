"""Fill-mask: a text with masks in, `fills` out, by BART: tokens for each mask, or generated words for a single one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from batchloom import models
from batchloom.pipelines.errors import ConfigError, RowError
from batchloom.pipelines.tasks.base import Answered, ColumnKind, Prepared, Task, TaskSpec, refuse_generation, with_head
from batchloom.pipelines.tasks.cures import CUT, Cure
from batchloom.pipelines.tasks.generating import resolved_generation
from batchloom.pipelines.tasks.length import InputLength, LengthOptions
from batchloom.pipelines.tasks.options import read_options
from batchloom.pipelines.tasks.texts import prepare_texts

if TYPE_CHECKING:
    from batchloom.models import SinglePass, Tokenizer

FILL_TYPE = pa.struct(
    [("token", pa.int32()), ("token_str", pa.string()), ("score", pa.float32()), ("sequence", pa.string())]
)
TOP_K = 5


@dataclass(frozen=True, kw_only=True)
class FillMaskOptions(LengthOptions):
    """`task_options` of a fill-mask job."""

    fill: Literal["token", "span"] = "token"
    """token: one token for each mask. span: the text is generated again, so a mask can become any number of words."""
    top_k: int | None = None
    """Fills for each mask; 5 if not set. With `fill: span`, use generation.num_return_sequences instead."""


@dataclass(frozen=True, kw_only=True)
class FillMask(Task):
    """The fill-mask task; pipelines/tasks/base.py Task documents the methods."""

    cures: ClassVar[tuple[Cure, ...]] = (CUT,)

    text_column: str
    options: FillMaskOptions
    mask_id: int
    mask: str
    length: InputLength

    @classmethod
    def create(cls, spec: TaskSpec) -> "FillMask":
        options = read_options(spec.task, spec.options, FillMaskOptions)
        vocab_size = spec.checkpoint.config.vocab_size
        is_span = options.fill == "span"
        if is_span and options.top_k is not None:
            raise ConfigError(
                f"task_options.top_k: is {options.top_k}, and fill: span generates whole texts. "
                "Set generation.num_return_sequences."
            )
        if options.top_k is not None and not 1 <= options.top_k <= vocab_size:
            raise ConfigError(f"task_options.top_k: is {options.top_k}, must be from 1 to {vocab_size}.")
        if not is_span:
            refuse_generation(spec)
        mask_id, mask = _mask_of(spec)
        return cls(
            architecture=with_head(spec, "ForConditionalGeneration"),
            generation=resolved_generation(spec) if is_span else {},
            text_column=spec.input.text_column,
            options=options,
            mask_id=mask_id,
            mask=mask,
            length=InputLength.of(spec, options, "error"),
        )

    def input_columns(self) -> Mapping[str, ColumnKind]:
        return {self.text_column: ColumnKind.TEXT}

    def output_fields(self) -> list[pa.Field]:
        return [pa.field("fills", pa.list_(FILL_TYPE))]

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.options), **self.length.settings}

    def prepare(self, columns: Sequence[pa.ChunkedArray], tokenizer: "Tokenizer") -> Prepared:
        prepared = prepare_texts(columns[0], self.text_column, tokenizer, length=self.length)
        requests = prepared.requests
        has_mask = pa.array([self.mask_id in ids for ids in requests["token_ids"].to_pylist()], pa.bool_())
        errors = dict(prepared.errors)
        num_input, num_truncated = prepared.num_input_tokens.copy(), prepared.num_truncated_tokens.copy()
        for row, found in zip(requests["row"].to_pylist(), has_mask.to_pylist(), strict=True):
            if not found:
                where = "what is left of the text" if num_truncated[row] else "the text"
                errors[row] = RowError("prepare", "no_mask", f"{where} has no {self.mask}, so nothing is to be filled")
                num_input[row] = num_truncated[row] = 0
        requests = requests.filter(has_mask)
        if self.options.fill == "span":
            notes = pa.table({"text": columns[0].combine_chunks()})
        else:
            order = requests.sort_by("row")
            notes = order.select(["row", "token_ids"])
        return Prepared(requests, num_input, num_truncated, errors, notes)

    def ask(self, model: "SinglePass", token_ids: Sequence[Sequence[int]]) -> Mapping[str, pa.Array]:
        positions = [self._masks(ids) for ids in token_ids]
        found = model.top_tokens(token_ids, positions, self.options.top_k or TOP_K)
        return {
            "indices": pa.array([ids.flatten().numpy() for ids, _ in found], pa.list_(pa.int32())),
            "values": pa.array([scores.flatten().numpy() for _, scores in found], pa.list_(pa.float32())),
        }

    def _masks(self, token_ids: Sequence[int]) -> list[int]:
        return [position for position, token in enumerate(token_ids) if token == self.mask_id]

    def finish(self, answered: Answered, tokenizer: "Tokenizer") -> list[pa.Array]:
        assert answered.notes is not None
        fills: list[list[dict[str, Any]] | None] = [None] * answered.num_rows
        found = self._spans(answered, tokenizer) if self.options.fill == "span" else self._tokens(answered, tokenizer)
        for row, own in found:
            fills[row] = [*(fills[row] or ()), *own]
        return [pa.array(fills, pa.list_(FILL_TYPE))]

    def _tokens(self, answered: Answered, tokenizer: "Tokenizer") -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yield a row's fills: top_k for the first mask, then for the second; the other masks stay in `sequence`."""
        assert answered.notes is not None
        prompts = dict(zip(answered.notes["row"].to_pylist(), answered.notes["token_ids"].to_pylist(), strict=True))
        results = answered.results
        for row, ids, scores in zip(*(results[name].to_pylist() for name in ("row", "indices", "values")), strict=True):
            masks = self._masks(prompts[row])
            filled = []
            for position, token in zip(np.repeat(masks, self.options.top_k or TOP_K).tolist(), ids, strict=True):
                sequence = list(prompts[row])
                sequence[position] = token
                filled.append([one for one in sequence if one != tokenizer.pad_token_id])
            sequences = tokenizer.decode_batch(filled, skip_special_tokens=len(masks) == 1)
            words = tokenizer.decode_batch([[token] for token in ids], skip_special_tokens=False)
            yield (
                row,
                [
                    {"token": token, "token_str": word, "score": score, "sequence": sequence}
                    for token, word, score, sequence in zip(ids, words, scores, sequences, strict=True)
                ],
            )

    def _spans(self, answered: Answered, tokenizer: "Tokenizer") -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yield one fill for each generated text; its words are known only if the text around the mask is unchanged."""
        assert answered.notes is not None
        results = answered.results
        sequences = tokenizer.decode_batch(results["token_ids"].to_pylist())
        for row, score, sequence in zip(
            results["row"].to_pylist(), results["score"].to_pylist(), sequences, strict=True
        ):
            words = filled_words(answered.notes["text"][row].as_py(), self.mask, sequence)
            yield row, [{"token": None, "token_str": words, "score": score, "sequence": sequence}]


def filled_words(text: str, mask: str, sequence: str) -> str | None:
    """Return the words in place of the mask of `text`; None where the rest differs or there are several masks."""
    if text.count(mask) != 1:
        return None
    before, after = (part.strip() for part in text.split(mask))
    sequence = sequence.strip()
    if len(sequence) < len(before) + len(after) or not (sequence.startswith(before) and sequence.endswith(after)):
        return None
    return sequence[len(before) : len(sequence) - len(after)].strip()


def _mask_of(spec: TaskSpec) -> tuple[int, str]:
    """Return the mask token's id and text. Raises: ConfigError where the tokenizer or the model has none."""
    tokenizer = models.load_tokenizer(spec.checkpoint.pinned)
    mask_id, vocab_size = tokenizer.mask_token_id, spec.checkpoint.config.vocab_size
    if mask_id is None or mask_id >= vocab_size:
        found = "has none" if mask_id is None else f"has it at {mask_id}, and the model has {vocab_size} embeddings"
        raise ConfigError(
            f"model: fill-mask needs a mask token; the tokenizer of this checkpoint {found}. "
            "Use a pretrained BART, such as bart-base or bart-large."
        )
    return mask_id, tokenizer.decode_batch([[mask_id]], skip_special_tokens=False)[0]
