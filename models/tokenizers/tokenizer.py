"""The interface of every tokenizer. It does not know how text is split into tokens."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from batchloom.models.errors import RequestError

Int32Array = npt.NDArray[np.int32]


NO_TEXT = -1  # sequence and word of an added special token


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """The tokens of one text or pair, and each token's position in its text.

    Arrays of equal length: Python's lists of these take 250 bytes a token.
    """

    ids: Int32Array
    """Token ids, special tokens included."""
    offsets: Int32Array
    """Characters [start, end) in the original text, [tokens, 2]; [0, 0) for an added special token."""
    sequence_ids: Int32Array
    """0 for the text, 1 for its pair, NO_TEXT for an added special token."""
    word_ids: Int32Array
    """The tokenizer's words, counted from 0 in each sequence; NO_TEXT for an added special token."""

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Encoded) and all(
            np.array_equal(own, vars(other)[name]) for name, own in vars(self).items()
        )

    @staticmethod
    def of(
        ids: Sequence[int],
        offsets: Sequence[tuple[int, int]],
        sequence_ids: Sequence[int | None],
        word_ids: Sequence[int | None],
    ) -> "Encoded":
        """Return the arrays of these lists, which have None for an added special token."""
        return Encoded(
            ids=np.array(ids, np.int32),
            offsets=np.array(offsets, np.int32).reshape(-1, 2),
            sequence_ids=_numbers(sequence_ids),
            word_ids=_numbers(word_ids),
        )

    @staticmethod
    def joined(parts: Sequence["Encoded"]) -> "Encoded":
        """Return one after the other; a single one as it is."""
        if len(parts) == 1:
            return parts[0]
        return Encoded(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})

    def part(self, chosen: "slice | npt.NDArray[np.bool_] | npt.NDArray[np.intp]") -> "Encoded":
        """Return some of the tokens."""
        return Encoded(**{name: own[chosen] for name, own in vars(self).items()})


def _numbers(places: Sequence[int | None]) -> Int32Array:
    return np.array([NO_TEXT if place is None else place for place in places], np.int32)


class Tokenizer(ABC):
    """Converts text to token ids and back, exactly as the checkpoint's own tokenizer does.

    Nothing is truncated or padded, whatever the files set. Tokenizers are picklable.
    """

    name: str
    """The last component of the URI that it was loaded from, for messages."""
    vocab_size: int
    """The highest token id plus one, added tokens included. The model's vocab_size can be larger or smaller."""
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    unk_token_id: int | None
    mask_token_id: int | None

    @abstractmethod
    def encode_batch(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """Return the token ids of each text, or of each text and its pair.

        Raises: RequestError where a text is not a string or the pairs are not as many as the texts.
        """

    @abstractmethod
    def encode_flat(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, add_special_tokens: bool = True
    ) -> tuple[Int32Array, Int32Array]:
        """Return all token ids concatenated, int32 [N], and the offset of each text's first, int32 [texts + 1].

        Text i has ids[offsets[i] : offsets[i + 1]]: the two arrays are the buffers of an Arrow list column.
        Raises: as encode_batch, and RequestError where there are 2 ** 31 ids or more.
        """

    @abstractmethod
    def encode_offsets(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Encoded]:
        """Return the tokens of each text or pair, special tokens included, with their positions in the original text.

        Raises: as encode_batch.
        """

    @abstractmethod
    def encode_words(self, texts: Sequence[Sequence[str]]) -> list[Encoded]:
        """Return the tokens of each text that is given as its words: each is tokenized by itself, as transformers does
        with `is_split_into_words`, special tokens are around all. Word ids are those of the given words, and offsets
        those in the words with a space between each two. Raises: RequestError where a word is not a string.
        """

    @abstractmethod
    def token_spans(self, text: str) -> Int32Array:
        """Return the characters [start, end) of each token of a text, int32 [tokens, 2], without special tokens around.

        It is for texts of any length. Raises: RequestError where the text is not a string.
        """

    @abstractmethod
    def decode_batch(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """Return the text of each sequence of token ids, lists or arrays.

        Ids that the tokenizer does not have, as where the model's vocabulary is larger, decode as in transformers: to
        nothing, and in BlenderbotSmall to the unknown token. Raises: RequestError for a negative id, for which
        transformers raises too; BlenderbotSmall decodes it to the unknown token.
        """

    @abstractmethod
    def num_special_tokens(self, pair: bool = False) -> int:
        """Return how many special tokens are added around a text or a pair."""


def check_texts(texts: Sequence[str], pairs: Sequence[str] | None) -> None:
    """Raise RequestError unless all are strings and each text has a pair."""
    if pairs is not None and len(pairs) != len(texts):
        raise RequestError(f"{len(texts)} texts and {len(pairs)} pairs: each text needs one pair.")
    for kind, strings in (("text", texts), ("pair", pairs or ())):
        for index, string in enumerate(strings):
            if not isinstance(string, str):
                raise RequestError(
                    f"{kind} {index} is a {type(string).__name__}, expected a string. Fill or drop missing rows."
                )


def word_starts(words: Sequence[str]) -> list[int]:
    """Return the character at which each word begins, where a space is between each two."""
    return [0, *accumulate(len(word) + 1 for word in words)][: len(words)]


def offsets_of(lengths: Sequence[int]) -> Int32Array:
    """Return the offsets of concatenated sequences, int32 [len(lengths) + 1].

    Raises: RequestError where there are 2 ** 31 ids or more.
    """
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] >= 2**31:
        raise RequestError(
            f"{len(lengths)} texts gave {offsets[-1]} token ids, more than int32 can count. Use smaller batches."
        )
    return offsets.astype(np.int32)


def clean_up_spaces(text: str) -> str:
    """Return text without the spaces before punctuation and contractions, as transformers' clean-up does."""
    for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced.strip())
    return text
