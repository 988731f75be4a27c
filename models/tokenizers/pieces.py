"""Pieces of a long text that have, one after the other, the tokens of the whole. They are cut at spaces between words.

The library takes 130 bytes for each character of a text until it is encoded: 2 GB for a text of 15 MB, and less time in
pieces. Its tokenizers split a text into words before they look for tokens, and a space between two letters or digits
always begins a word, whatever stands before it:

    "The quick brown fox"    words "The" " quick" " brown" " fox"      pieces "The quick" " brown fox"
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from tokenizers import AddedToken
from tokenizers import Tokenizer as LibraryBackend

from batchloom.models.families.table import FAMILIES

PIECE_CHARACTERS = 1 << 16

_WORD_STARTS = re.compile(r"(?<=[^\W_]) (?=[^\W_])")
_LOCAL_NORMALIZERS = {None, "NFC", "NFKC", "Precompiled"}  # they change no character by what stands beyond a space


class Piece(NamedTuple):
    """A part of a text."""

    text: str
    start: int
    """Its first character in the whole."""
    is_last: bool

    @property
    def is_first(self) -> bool:
        return self.start == 0


def cut_at_spaces(text: str) -> Iterator[Piece]:
    """Yield the pieces of a text; the text itself where it is short, or has no space between words."""
    start = 0
    while True:
        space = _WORD_STARTS.search(text, start + PIECE_CHARACTERS)
        if space is None:
            yield Piece(text[start:], start, is_last=True)
            return
        yield Piece(text[start : space.start()], start, is_last=False)
        start = space.start()


def is_local(backend: LibraryBackend) -> bool:
    """Return whether a tokenizer gives the pieces of a text the tokens of the whole: of the known ones, all do."""
    normalizer, words = _state(backend.normalizer), _state(backend.pre_tokenizer)
    added = backend.get_added_tokens_decoder().values()
    return (
        normalizer.get("type") in _LOCAL_NORMALIZERS
        and (_are_gpt2s_words(words) or _are_blooms_words(words) or _are_sentencepieces_words(words))
        and not any(
            _WORD_STARTS.search(token.content) or (token.rstrip and token.content[-1:].isalnum()) for token in added
        )
    )


def _reaches_on(token: AddedToken) -> bool:
    """Return whether an added token may lie on both sides of a cut."""
    return _WORD_STARTS.search(token.content) is not None or (token.rstrip and token.content[-1:].isalnum())


def _state(part: Any) -> dict[str, Any]:
    state: dict[str, Any] = {} if part is None else json.loads(part.__getstate__())
    return state


def _are_gpt2s_words(words: dict[str, Any]) -> bool:
    return words.get("type") == "ByteLevel" and words.get("use_regex", True) is True


def _are_blooms_words(words: dict[str, Any]) -> bool:
    match words:
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "use_regex": False},
            ],
        }:
            return pattern in {family.tokenizer.word_pattern for family in FAMILIES.values()}
    return False


def _are_sentencepieces_words(words: dict[str, Any]) -> bool:
    match words:
        case {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "prepend_scheme": "always"}],
        }:
            return True
    return False
