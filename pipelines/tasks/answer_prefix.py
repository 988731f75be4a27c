"""The option answer_prefix: what a row's answer begins with, a text or a template with columns. It knows no task.

    summarization           decoder    </s> <s> In short :     a harbour ...      forced <s> where the job has one
    text-generation         prompt     Title: Harbour ... In short :     a harbour ...

The prefix is tokenized apart, without special tokens. Its tokens are a request's, beside those of the prompt, and come
back with its results, as the answer's text is that of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchloom import models
from batchloom.pipelines.arrow_functions import pc
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.fields import ANSWER_PREFIX
from batchloom.pipelines.tasks.base import ColumnKind, Ints, Prepared, TaskSpec
from batchloom.pipelines.tasks.prompts import Template

if TYPE_CHECKING:
    from batchloom.models import Tokenizer

Prefixes = Sequence[Sequence[int] | None]  # of each row; None: it has none


@dataclass(frozen=True)
class AnswerPrefix:
    """What the answers of a job begin with."""

    template: Template
    first: tuple[int, ...]
    """The token that is forced before it: with a prompt the decoder itself forces none."""
    num_tokens: int
    """Tokens of each prefix, `first` included; 0 where they depend on the row."""
    positions: int | None
    """Those that a prompt and its prefix have together; None: any number, or the prefix is in another stack."""

    @staticmethod
    def of(spec: TaskSpec, text: str | None, architecture: str, generation: Mapping[str, Any]) -> "AnswerPrefix | None":
        """Return what `task_options.answer_prefix` asks for. `generation`: resolved.

        Raises: ConfigError where it is no template, has no token, or leaves no answer any room.
        """
        if text is None:
            return None
        template = Template(text, "answer_prefix", needs_column=False)
        has_encoder = architecture.endswith("ForConditionalGeneration")
        forced = generation.get("forced_bos_token_id")
        first = () if forced is None or not has_encoder else (forced,)
        prefix = AnswerPrefix(template, first, 0, None if has_encoder else spec.checkpoint.max_positions)
        if template.columns:
            return prefix
        (tokens,) = prefix.tokens({}, 1, models.load_tokenizer(spec.checkpoint.pinned))
        if tokens is None:
            raise ConfigError(
                f"task_options.answer_prefix: is {text!r}, of which the tokenizer makes no token. Leave it out."
            )
        _check_room(spec, len(tokens), generation)
        return replace(prefix, num_tokens=len(tokens))

    def tokens(self, columns: Mapping[str, pa.ChunkedArray], num_rows: int, tokenizer: "Tokenizer") -> Prefixes:
        """Return each row's prefix; None where one of its columns is null or blank. `columns`: texts by name."""
        filled = self.template.fill([_unless_blank(columns[name]) for name in self.template.columns], num_rows)
        texts = filled.to_pylist()
        distinct = list(dict.fromkeys(text for text in texts if text))
        encoded = dict(zip(distinct, tokenizer.encode_batch(distinct, add_special_tokens=False), strict=True))
        return [[*self.first, *ids] if text and (ids := encoded[text]) else None for text in texts]

    def room(self, prefixes: Prefixes) -> Ints | None:
        """Return how many tokens are left for each row's prompt, [rows]; None: as many as without a prefix."""
        if self.positions is None:
            return None
        return np.array([self.positions - len(ids or ()) for ids in prefixes], np.int32)


def columns_with(own: Mapping[str, ColumnKind], prefix: AnswerPrefix | None) -> Mapping[str, ColumnKind]:
    """Return a task's columns, and those that its answers' prefix needs beside them."""
    return own if prefix is None else {**own, **prefix.template.columns, **own}


def with_prefixes(prepared: Prepared, prefixes: Prefixes) -> Prepared:
    """Return the requests with the tokens that their answers begin with: of a row's pieces, the first has the row's."""
    places = zip(prepared.requests["row"].to_pylist(), prepared.requests["piece"].to_pylist(), strict=True)
    own = [(row, prefixes[row] if piece == 0 else None) for row, piece in places]
    num_input = prepared.num_input_tokens.copy()
    for row, ids in own:
        num_input[row] += len(ids or ())
    column = pa.array([ids for _, ids in own], ANSWER_PREFIX.type)
    return replace(
        prepared, requests=prepared.requests.append_column(ANSWER_PREFIX, column), num_input_tokens=num_input
    )


def _unless_blank(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts, null where they are only white space."""
    is_blank = pc.equal(pc.utf8_trim_whitespace(texts), "")
    return pc.if_else(is_blank, pa.scalar(None, texts.type), texts)


def _check_room(spec: TaskSpec, num_tokens: int, generation: Mapping[str, Any]) -> None:
    """Raise ConfigError where no answer has room behind a prefix, which the start token or a prompt is before."""
    positions, most = spec.checkpoint.max_positions, generation.get("max_length")
    if positions is not None and num_tokens >= positions:
        raise ConfigError(
            f"task_options.answer_prefix: has {num_tokens} tokens, and leaves no answer any room: the decoder has "
            f"{positions} positions, one of them at least for what is before it. Shorten it."
        )
    least = generation.get("min_new_tokens") or 0
    asked = most if most is not None else num_tokens + 1 + generation["max_new_tokens"]
    if positions is not None and min(num_tokens + 1 + least, asked) > positions + 1:
        raise ConfigError(
            f"generation.min_new_tokens: is {least}, and task_options.answer_prefix has {num_tokens} tokens before "
            f"them: the decoder has {positions} positions, so no row could be answered. Set it to "
            f"{positions - num_tokens} at most, or shorten the prefix."
        )
    if most is not None and num_tokens + 1 >= most:
        raise ConfigError(
            f"task_options.answer_prefix: has {num_tokens} tokens, and generation.max_length = {most}, which counts "
            "them and what is before them, leaves no answer any room. Raise it, or set "
            "max_new_tokens."
        )
