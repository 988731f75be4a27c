"""Split long texts into chunks at sentence ends, each with an overlap with the one before. It knows no task.

    sentences   AAAA BBBBBB CCC DDDDD EE FFFFFFF        limit 16, overlap 3
    chunks      AAAA BBBBBB CCC
                            CCC DDDDD EE
                                      EE FFFFFFF

No token is lost: a sentence longer than a chunk is split between words, a word longer than a chunk between tokens.
"""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from batchloom.pipelines.tasks.base import Ints

if TYPE_CHECKING:
    from batchloom.models import Tokenizer

OVERLAP_SHARE = 8  # a chunk repeats at most 1/8 of its length from the chunk before: enough to resolve pronouns
SLACK = 4  # tokens by which a piece of text, encoded alone, may exceed its tokens within the whole text

# A sentence mark with closing quotes: a Latin one before white space, one of another script anywhere; or a line break.
_SENTENCE_END = re.compile(r"(?:[.!?…][\"'”’)\]»]*(?=\s)|[。！？؟।][”’」』）]*|(?=\n))")
_WORD_END = re.compile(r"\S(?=\s)")


def chunks(text: str, tokenizer: "Tokenizer", prefix: str, max_tokens: int) -> list[str]:
    """Split a text into chunks of at most `max_tokens` tokens, prefix and special tokens included; drop blank ones."""
    room = max_tokens - len(tokenizer.encode_batch([prefix])[0]) - SLACK
    pieces = list(_pieces(text, tokenizer, max(room, 1)))
    _, offsets = tokenizer.encode_flat([prefix + piece for piece in pieces])
    lengths = np.diff(offsets).tolist()
    fitting: list[str] = []
    for piece, length in zip(pieces, lengths, strict=True):
        if length <= max_tokens or len(piece) < 2:
            fitting.append(piece)
        else:  # its tokens depended on the text before it: rare, so halve it and try again
            half = len(piece) // 2
            fitting += [*chunks(piece[:half], tokenizer, prefix, max_tokens)]
            fitting += [*chunks(piece[half:], tokenizer, prefix, max_tokens)]
    return fitting


def _pieces(text: str, tokenizer: "Tokenizer", limit: int) -> Iterator[str]:
    spans = tokenizer.token_spans(text)
    if not len(spans):
        return
    starts, stops = spans.T
    characters = [
        *starts[1:].tolist(),
        len(text),
    ]  # a chunk that ends before token i + 1 ends where that starts
    for first, last in cut(starts, stops, _places(_SENTENCE_END, text), _places(_WORD_END, text), limit):
        piece = text[0 if first == 0 else int(starts[first]) : characters[last - 1]].strip()
        if piece:
            yield piece


def _places(pattern: re.Pattern[str], text: str) -> Ints:
    return np.fromiter((match.end() for match in pattern.finditer(text)), dtype=np.int32)


def cut(
    starts: Ints, stops: Ints, sentence_ends: Ints, word_ends: Ints, limit: int, overlap: int | None = None
) -> Iterator[tuple[int, int]]:
    """Yield ranges of at most `limit` tokens that cover all tokens.

    `starts`, `stops` [tokens]: each token's characters. `sentence_ends`, `word_ends`: character positions, ascending.
    """
    overlap = limit // OVERLAP_SHARE if overlap is None else overlap
    num_tokens = len(starts)
    # As token numbers: a break at i lies between the tokens i - 1 and i.
    sentences = np.unique(np.searchsorted(stops, sentence_ends, side="right"))
    words = np.unique(np.searchsorted(stops, word_ends, side="right"))
    whole = np.flatnonzero(np.append(starts[1:] >= stops[:-1], True)) + 1  # not between the tokens of one character
    first = stop = 0
    while num_tokens - first > limit:
        stop = next(
            (last for breaks in (sentences, words, whole) if (last := _last_in(breaks, stop, first + limit))),
            first + limit,
        )
        yield first, stop
        first = _next_start(sentences, first, stop, limit, overlap)
    yield first, num_tokens


def _next_start(sentences: Ints, first: int, stop: int, limit: int, overlap: int) -> int:
    """Return the start of the next chunk: a sentence start at most `overlap` tokens before `stop`, from where the
    chunk reaches the end of a sentence after `stop`; else `stop`."""
    begin = np.searchsorted(sentences, max(stop - overlap, first + 1))
    for start in sentences[begin : np.searchsorted(sentences, stop)].tolist():
        if _last_in(sentences, stop, start + limit):
            return start
    return stop


def _last_in(breaks: Ints, after: int, until: int) -> int | None:
    """Return the last break in (after, until], None where there is none."""
    index = int(np.searchsorted(breaks, until, side="right")) - 1
    return int(breaks[index]) if index >= 0 and breaks[index] > after else None


def joined(texts: Sequence[str]) -> str:
    """Join texts by single spaces, without blank ones."""
    return " ".join(text.strip() for text in texts if text.strip())
