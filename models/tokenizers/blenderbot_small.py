"""BlenderbotSmall's own BPE: lower case, punctuation split off, `@@` after tokens inside a word. It knows no bytes."""

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import numpy as np

from batchloom.models.errors import TokenizerError
from batchloom.models.tokenizers.merge_table import MergeTable
from batchloom.models.tokenizers.settings import ROLES, Settings
from batchloom.models.tokenizers.tokenizer import (
    Encoded,
    Int32Array,
    Tokenizer,
    check_texts,
    clean_up_spaces,
    offsets_of,
    word_starts,
)
from batchloom.models.tokenizers.vocabulary import Merges

_DEFAULT_ROLES = {
    "bos_token": "__start__",
    "eos_token": "__end__",
    "unk_token": "__unk__",
    "pad_token": "__null__",
}
_NEW_LINE = "__newln__"
# transformers splits with the regex module, whose \s, unlike re's, does not match U+001C to U+001F
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# A word: an apostrophe alone, or text with at most one punctuation mark, before it. A line end is a word where it
# directly follows one, but not after an apostrophe, where transformers drops it with the spaces that it adds.
_WORD = re.compile(rf"'|[.,!?()]?[^{_SPACE}.,!?()']+|[.,!?()]|(?<=[^{_SPACE}'])\n")
_MAX_CACHED_WORDS = 1 << 18


class BlenderbotSmallTokenizer(Tokenizer):
    """Gives exactly transformers' tokens; fast because it caches words. Single-threaded.

    No special tokens are added around a text or a pair; those in the text, in their exact spelling, are kept whole.
    """

    def __init__(self, vocabulary: dict[str, int], merges: Merges, settings: Settings, name: str) -> None:
        """Raises: TokenizerError where the vocabulary has no unknown token."""
        self.name = name
        special = _special_ids(vocabulary, settings)
        self.bos_token_id = special.get("bos_token")
        self.eos_token_id = special.get("eos_token")
        self.pad_token_id = special.get("pad_token")
        self.unk_token_id = special.get("unk_token")
        self.mask_token_id = special.get("mask_token")
        if self.unk_token_id is None:
            raise TokenizerError(
                f"{name} has no unknown token among the {len(vocabulary)} tokens of vocab.json, expected "
                f"{_DEFAULT_ROLES['unk_token']!r} or the unk_token of tokenizer_config.json. Correct either."
            )
        self._token_of = {index: token for token, index in vocabulary.items()}
        self._token_of |= {index: token.content for index, token in settings.added_tokens.items()}
        added = {self._token_of[index]: index for index in (*special.values(), *settings.added_tokens)}
        self.vocab_size = max(self._token_of) + 1
        self._skipped = {*special.values(), *(i for i, t in settings.added_tokens.items() if t.special)}
        self._added = added
        # Longest first: of two added tokens with a common prefix, the longer one matches. Their lstrip and rstrip
        # have no effect, since white space is dropped everywhere
        self._added_pattern = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))))
        self._cleans_up = settings.clean_up_spaces
        self._word_ids = _WordIds(vocabulary, MergeTable(merges), self.unk_token_id)

    def encode_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        add_special_tokens: bool = True,  # noqa: ARG002  there are none to add
    ) -> list[list[int]]:
        check_texts(texts, pairs)
        ids = [self._ids(text) for text in texts]
        if pairs is None:
            return ids
        return [first + self._ids(pair) for first, pair in zip(ids, pairs, strict=True)]

    def encode_flat(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, add_special_tokens: bool = True
    ) -> tuple[Int32Array, Int32Array]:
        rows = self.encode_batch(texts, pairs, add_special_tokens)
        offsets = offsets_of([len(row) for row in rows])
        ids = array("i")
        for row in rows:
            ids.fromlist(row)
        return np.asarray(ids), offsets

    def encode_offsets(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Encoded]:
        check_texts(texts, pairs)
        if pairs is None:
            return [self._encoded([text]) for text in texts]
        return [self._encoded([text, pair]) for text, pair in zip(texts, pairs, strict=True)]

    def encode_words(self, texts: Sequence[Sequence[str]]) -> list[Encoded]:
        return [self._of_words(words) for words in texts]

    def _of_words(self, words: Sequence[str]) -> Encoded:
        parts = [Encoded.of([], [], [], [])]
        for word, (start, own) in enumerate(zip(word_starts(words), self.encode_offsets(words), strict=True)):
            parts.append(replace(own, offsets=own.offsets + np.int32(start), word_ids=np.full_like(own.word_ids, word)))
        return Encoded.joined(parts)

    def token_spans(self, text: str) -> Int32Array:
        check_texts([text], None)
        spans = array("i")
        for piece in self._pieces(text):
            own = self._word_ids.spans(piece.text) if piece.added_id is None else [(0, len(piece.text))]
            spans.extend(piece.start + place for span in own for place in span)
        return np.asarray(spans).reshape(-1, 2)

    def decode_batch(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        skipped = self._skipped if skip_special_tokens else frozenset()
        unknown = self._token_of[self._word_ids.unknown_id]
        texts = []
        for row in ids:
            tokens = (self._token_of.get(index, unknown) for index in row if index not in skipped)
            texts.append(" ".join(tokens).replace("@@ ", "").strip())
        return [clean_up_spaces(text) for text in texts] if self._cleans_up else texts

    def num_special_tokens(self, pair: bool = False) -> int:  # noqa: ARG002
        return 0

    def _ids(self, text: str) -> list[int]:
        words = self._word_ids
        if not any(token in text for token in self._added):
            return list(chain.from_iterable(map(words.__getitem__, _WORD.findall(text))))
        ids: list[int] = []
        for piece in self._pieces(text):
            ids += words[piece.text] if piece.added_id is None else (piece.added_id,)
        return ids

    def _encoded(self, sequences: list[str]) -> Encoded:
        ids, places, sequence_ids, word_ids = (array("i") for _ in range(4))
        for sequence_id, text in enumerate(sequences):
            for word_id, piece in enumerate(self._pieces(text)):
                if piece.added_id is None:
                    own, spans = self._word_ids[piece.text], self._word_ids.spans(piece.text)
                else:
                    own, spans = (piece.added_id,), [(0, len(piece.text))]
                ids.extend(own)
                places.extend(piece.start + place for span in spans for place in span)
                sequence_ids.extend([sequence_id] * len(own))
                word_ids.extend([word_id] * len(own))
        return Encoded(
            ids=np.asarray(ids),
            offsets=np.asarray(places).reshape(-1, 2),
            sequence_ids=np.asarray(sequence_ids),
            word_ids=np.asarray(word_ids),
        )

    def _pieces(self, text: str) -> Iterator["_Piece"]:
        start = 0
        for added in (*self._added_pattern.finditer(text), None):
            end = len(text) if added is None else added.start()
            for word in _WORD.finditer(text[start:end]):  # a slice: the lookbehind must not see the token before it
                yield _Piece(start + word.start(), word.group(), None)
            if added is not None:
                yield _Piece(end, added.group(), self._added[added.group()])
                start = added.end()


class _Piece(NamedTuple):
    """A word or an added token, and its first character in the text."""

    start: int
    text: str
    added_id: int | None


class _WordIds(dict[str, tuple[int, ...]]):
    """A cache from a word, as written in the text, to its token ids. Texts repeat words, so nearly all lookups hit."""

    def __init__(self, vocabulary: dict[str, int], merges: MergeTable, unknown_id: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.merges = merges
        self.unknown_id = unknown_id

    def __missing__(self, word: str) -> tuple[int, ...]:
        *first, last = self._symbols(word)
        tokens = [*(symbol + "@@" for symbol in first), last]
        ids = tuple(self.vocabulary.get(token, self.unknown_id) for token in tokens)
        if len(self) < _MAX_CACHED_WORDS:
            self[word] = ids
        return ids

    def __reduce__(self) -> tuple[type["_WordIds"], tuple[dict[str, int], MergeTable, int]]:
        return _WordIds, (self.vocabulary, self.merges, self.unknown_id)  # the cache is not pickled

    def spans(self, word: str) -> list[tuple[int, int]]:
        """Return the range of characters of the word that each token covers, end excluded."""
        symbols = self._symbols(word)
        if word == "\n":
            return [(0, 1)] * len(symbols)
        # Lower-casing can lengthen: "İ" becomes two characters, which both came from one
        origin = [place for place, character in enumerate(word) for _ in character.lower()]
        ends = list(accumulate(map(len, symbols)))
        return [(origin[start], origin[end - 1] + 1) for start, end in pairwise((0, *ends))]

    def _symbols(self, word: str) -> list[str]:
        word = _NEW_LINE if word == "\n" else word.lower()
        if len(word) == 1:
            return [word]
        *first, last = self.merges.merge([*word[:-1], word[-1] + "</w>"])
        return [*first, last.removesuffix("</w>")]


def _special_ids(vocabulary: dict[str, int], settings: Settings) -> dict[str, int]:
    """Return the ids of the special tokens that the vocabulary has, by role, or by the token itself without a role."""
    contents: dict[str, str] = dict(_DEFAULT_ROLES)
    for role in ROLES:
        if role in settings.special_tokens:
            token = settings.special_tokens[role]
            contents[role] = "" if token is None else token.content
    contents |= {token.content: token.content for token in settings.extra_special_tokens}
    known = vocabulary | {token.content: index for index, token in settings.added_tokens.items()}
    return {role: known[content] for role, content in contents.items() if content in known}
