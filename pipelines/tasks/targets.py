"""Read texts and the targets that are scored given them as tokens. It knows no task and no model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchloom.pipelines.tasks.base import Ints
from batchloom.pipelines.tasks.texts import num_around, token_arrays

if TYPE_CHECKING:
    from batchloom.models import Tokenizer

# A row's targets are scored in pieces of about so many tokens, so that a thousand of them are no longer a request than
# memory was planned for; the source is computed once for each piece.
PIECE_TOKENS = 1024


@dataclass(frozen=True)
class TargetReader:
    """How texts and targets become tokens."""

    tokenizer: "Tokenizer"
    is_encoder_decoder: bool
    around: tuple[int, int]
    """Special tokens before a source, and behind it."""
    closing: Ints
    """Special tokens behind a target, where the tokenizer does not put them there."""

    @staticmethod
    def of(tokenizer: "Tokenizer", is_encoder_decoder: bool) -> "TargetReader":
        before, after = num_around(tokenizer)
        if is_encoder_decoder:
            return TargetReader(tokenizer, True, (before, after), np.empty(0, np.int32))
        (example,) = token_arrays(["a"], tokenizer)
        return TargetReader(tokenizer, False, (before, 0), example[len(example) - after :])

    def sources(self, texts: Sequence[str]) -> list[Ints]:
        """Return the tokens of texts; those that targets continue end without closing tokens and white space."""
        if self.is_encoder_decoder:
            return token_arrays(texts, self.tokenizer)
        whole = token_arrays([text.rstrip() for text in texts], self.tokenizer)
        return [ids[: len(ids) - len(self.closing)] for ids in whole]

    def targets(self, pairs: Sequence[tuple[str, str]]) -> list[Ints]:
        """Return the tokens of targets, given as (text, target).

        White space between the two belongs to the target: byte-pair vocabularies have words with the space before them.
        """
        if self.is_encoder_decoder:
            return token_arrays([target for _, target in pairs], self.tokenizer)
        texts = [text[len(text.rstrip()) :] + target for text, target in pairs]
        return [np.concatenate([ids, self.closing]) for ids in token_arrays(texts, self.tokenizer, False)]


def pieces_of(targets: Sequence[Ints]) -> Iterator[list[Ints]]:
    """Yield a row's targets, as many at a time as have PIECE_TOKENS, one at least."""
    piece: list[Ints] = []
    for target in targets:
        if piece and sum(map(len, piece)) + len(target) > PIECE_TOKENS:
            yield piece
            piece = []
        piece.append(target)
    yield piece
