"""A tokenizer based on the tokenizers library. It does not know which files its backend came from."""

import re
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as LibraryBackend
from tokenizers.models import BPE

from batchloom.models.errors import RequestError
from batchloom.models.tokenizers.overlay import role_content
from batchloom.models.tokenizers.pieces import Piece, cut_at_spaces, is_local
from batchloom.models.tokenizers.settings import Settings
from batchloom.models.tokenizers.tokenizer import (
    NO_TEXT,
    Encoded,
    Int32Array,
    Tokenizer,
    check_texts,
    clean_up_spaces,
    offsets_of,
    word_starts,
)

_TEXTS_AT_A_TIME = 512
_CHARACTERS_AT_A_TIME = 1 << 20
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class LibraryTokenizer(Tokenizer):
    """Encodes and decodes batches on all cores, in the library's threads.

    Threads need no configuration, also in Ray's workers; TOKENIZERS_PARALLELISM=false turns them off, and a process
    that forks after encoding uses one from then on. Lone surrogates, which UTF-8 cannot encode and for which
    transformers raises, are read as U+FFFD.
    """

    def __init__(self, backend: LibraryBackend, settings: Settings, name: str) -> None:
        # Stored settings are those of whoever saved the file: bart-large-cnn's truncates inputs to 256 tokens
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = settings.split_special_tokens
        if isinstance(backend.model, BPE):
            backend.model.dropout = None  # for training: it splits the same text differently each time
        self.name = name
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._backend = backend
        self._is_local = is_local(backend)
        # BPE tokens include their spaces: clean-up would turn "a ." that the model generated into "a.". transformers
        # before 4.45 cleaned up by default; since 5 it does so only where this long setting is true, and so do we
        self._cleans_up = (
            settings.clean_up_spaces_of_bpe if isinstance(backend.model, BPE) else settings.clean_up_spaces
        )
        self.bos_token_id = self._role("bos_token", settings)
        self.eos_token_id = self._role("eos_token", settings)
        self.pad_token_id = self._role("pad_token", settings)
        self.unk_token_id = self._role("unk_token", settings)
        self.mask_token_id = self._role("mask_token", settings)

    def encode_batch(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, add_special_tokens: bool = True
    ) -> list[list[int]]:
        rows: list[list[int]] = [[] for _ in texts]
        for index, ids in self._ids(texts, pairs, add_special_tokens):
            rows[index] += ids
        return rows

    def encode_flat(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, add_special_tokens: bool = True
    ) -> tuple[Int32Array, Int32Array]:
        flat, lengths = array("i"), [0] * len(texts)
        for index, ids in self._ids(texts, pairs, add_special_tokens):
            flat.fromlist(ids)  # the library returns lists only; array converts them in C
            lengths[index] += len(ids)
        return np.asarray(flat), offsets_of(lengths)

    def encode_offsets(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Encoded]:
        check_texts(texts, pairs)
        if pairs is not None or not self._is_local:
            return [_encoded(one) for one in self._run(self._backend.encode_batch, texts, pairs, True)]
        before, after = (Encoded.of(ids, *_around(len(ids))) for ids in self._around)
        parts: list[list[Encoded]] = [[before] for _ in texts]
        for index, part in self._placed(texts):
            parts[index].append(part)
        return [Encoded.joined([*own, after]) for own in parts]

    def encode_words(self, texts: Sequence[Sequence[str]]) -> list[Encoded]:
        check_texts([word for words in texts for word in words], None)
        encoded = []
        for start, stop in _slices([" ".join(words) for words in texts], None):
            some = [_readable(list(words)) for words in texts[start:stop]]
            for words, e in zip(some, self._backend.encode_batch(some, is_pretokenized=True), strict=True):
                own = _encoded(e)
                is_text = own.word_ids != NO_TEXT
                own.offsets[is_text] += np.array(word_starts(words), np.int32)[own.word_ids[is_text], None]
                own.offsets[~is_text] = 0
                encoded.append(own)
        return encoded

    def token_spans(self, text: str) -> Int32Array:
        check_texts([text], None)
        return Encoded.joined([part for _, part in self._placed([text])]).offsets

    def _placed(self, texts: Sequence[str]) -> Iterator[tuple[int, Encoded]]:
        """Yield (index of the text, the next of its tokens), without special tokens around."""
        pieces = [
            (index, piece)
            for index, text in enumerate(texts)
            for piece in (cut_at_spaces(text) if self._is_local else [Piece(text, 0, is_last=True)])
        ]
        # The character before a piece goes with it: what stands at the start of a text may get a space before it.
        inside = [(texts[index][piece.start - 1] if piece.start else "") + piece.text for index, piece in pieces]
        word = 0  # the last of the piece before
        encodings = self._run(self._backend.encode_batch, inside, None, add_special_tokens=False)
        for (index, piece), encoding in zip(pieces, encodings, strict=True):
            own = _encoded(encoding)
            if piece.start:
                own = own.part(own.word_ids > 0)
                own.offsets[:] += piece.start - 1
                own.word_ids[:] += word
            word = int(own.word_ids.max(initial=word if piece.start else 0))
            yield index, own

    def decode_batch(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        rows = [row.tolist() if isinstance(row, np.ndarray) else list(row) for row in ids]
        try:
            texts = self._backend.decode_batch(rows, skip_special_tokens=skip_special_tokens)
        except OverflowError as error:
            index = next(i for i, row in enumerate(rows) if row and not 0 <= min(row) <= max(row) < 2**32)
            raise RequestError(f"sequence {index} to decode holds ids below 0 or above 2 ** 32.") from error
        return [clean_up_spaces(text) for text in texts] if self._cleans_up else texts

    def num_special_tokens(self, pair: bool = False) -> int:
        return self._backend.num_special_tokens_to_add(pair)

    def _ids(
        self, texts: Sequence[str], pairs: Sequence[str] | None, add_special_tokens: bool
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield (index of the text, the next of its ids). A long text has several pieces, where that changes no id."""
        check_texts(texts, pairs)
        encode = self._backend.encode_batch_fast  # leaves offsets out
        if pairs is not None or not self._is_local:
            for index, encoding in enumerate(self._run(encode, texts, pairs, add_special_tokens)):
                yield index, encoding.ids
            return
        pieces = [(index, piece) for index, text in enumerate(texts) for piece in cut_at_spaces(text)]
        before, after = self._around if add_special_tokens else ([], [])
        encodings = self._run(encode, [piece.text for _, piece in pieces], None, add_special_tokens=False)
        for (index, piece), encoding in zip(pieces, encodings, strict=True):
            yield index, [*(before if piece.is_first else ()), *encoding.ids, *(after if piece.is_last else ())]

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens before and after a text."""
        encoding = self._backend.encode("a")
        own = [place for place, is_special in enumerate(encoding.special_tokens_mask) if not is_special]
        return encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]

    def _run(
        self, encode: Any, texts: Sequence[str], pairs: Sequence[str] | None, add_special_tokens: bool
    ) -> Iterator[Encoding]:
        """Encode limited numbers of texts and characters at a time: encodings take 130 bytes a character until read."""
        for start, stop in _slices(texts, pairs):
            some = list(texts[start:stop])
            others = None if pairs is None else list(pairs[start:stop])
            try:
                encodings = encode(_joined(some, others), add_special_tokens=add_special_tokens)
            except (TypeError, UnicodeEncodeError):
                # Lone surrogates. Not searched for beforehand: a pass over all characters for a very rare case
                some, others = _readable(some), None if others is None else _readable(others)
                encodings = encode(_joined(some, others), add_special_tokens=add_special_tokens)
            yield from encodings

    def _role(self, role: str, settings: Settings) -> int | None:
        content = role_content(role, settings)
        return None if content is None else self._backend.token_to_id(content)


def _slices(texts: Sequence[str], pairs: Sequence[str] | None) -> Iterator[tuple[int, int]]:
    """Yield ranges of the texts that are encoded together: each as large as the limits allow, one text at least."""
    start = num_characters = 0
    for index, text in enumerate(texts):
        num_more = len(text) + (0 if pairs is None else len(pairs[index]))
        if index > start and (index - start >= _TEXTS_AT_A_TIME or num_characters + num_more > _CHARACTERS_AT_A_TIME):
            yield start, index
            start, num_characters = index, 0
        num_characters += num_more
    if start < len(texts):
        yield start, len(texts)


def _encoded(encoding: Encoding) -> Encoded:
    return Encoded.of(encoding.ids, encoding.offsets, encoding.sequence_ids, encoding.word_ids)


def _around(num_tokens: int) -> tuple[list[tuple[int, int]], list[None], list[None]]:
    """Return the places of added special tokens."""
    return [(0, 0)] * num_tokens, [None] * num_tokens, [None] * num_tokens


def _joined(texts: list[str], pairs: list[str] | None) -> list[Any]:
    return texts if pairs is None else list(zip(texts, pairs, strict=True))


def _readable(texts: list[str]) -> list[str]:
    return [_LONE_SURROGATE.sub("\ufffd", text) for text in texts]
