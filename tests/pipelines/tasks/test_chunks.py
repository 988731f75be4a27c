"""Chunks of long texts: nothing lost, cut at sentence ends, never longer than asked."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchloom.models import load_tokenizer
from batchloom.pipelines.tasks.chunks import chunks, cut


def letters(text):
    return "".join(text.split())


@st.composite
def token_layouts(draw):
    """Tokens over characters, with ends of sentences and words among them."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=60))
    stops = np.cumsum(lengths)
    starts = stops - lengths
    words = sorted(draw(st.sets(st.sampled_from(stops.tolist()))))
    sentences = sorted(draw(st.sets(st.sampled_from(words)))) if words else []
    return starts, stops, np.array(sentences, np.int32), np.array(words, np.int32)


@given(token_layouts(), st.integers(2, 20), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_every_token_is_in_a_chunk_and_none_too_long(layout, limit, overlap):
    starts, stops, sentences, words = layout
    ranges = list(cut(starts, stops, sentences, words, limit, overlap))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == len(starts)
    assert all(0 < stop - first <= limit for first, stop in ranges)
    for (first, stop), (later, end) in pairwise(ranges):
        assert stop - overlap <= later <= stop
        assert first < later
        assert stop < end


def test_a_cut_prefers_sentences_then_words():
    stops = np.arange(1, 13)
    sentences, words = np.array([4, 11]), np.array([2, 4, 6, 9, 11])
    assert list(cut(stops - 1, stops, sentences, words, 5, 0)) == [(0, 4), (4, 9), (9, 12)]
    assert list(cut(stops - 1, stops, np.array([2, 4, 6, 9, 11]), words, 5, 2)) == [(0, 4), (2, 6), (4, 9), (9, 12)]


@pytest.mark.parametrize("limit", [12, 40, 128])
def test_a_text_in_chunks_loses_no_letter(checkpoint, make_sentences, limit):
    tokenizer = load_tokenizer(checkpoint)
    text = "\n".join(make_sentences(20, seed=22)) + " " + "unbroken" * 40 + " 😀😀😀 " + "日本語。" * 30
    pieces = chunks(text, tokenizer, "", limit)
    assert max(len(ids) for ids in tokenizer.encode_batch(pieces)) <= limit
    position, whole = 0, letters(text)
    for piece in map(letters, pieces):  # each begins at or before the end of those before it
        begin = whole.rfind(piece, 0, position + len(piece))
        assert 0 <= begin <= position
        position = max(position, begin + len(piece))
    assert position == len(whole)


def test_chunks_end_where_sentences_end(checkpoint, make_sentences):
    text = " ".join(make_sentences(40, seed=23, longest=8))
    pieces = chunks(text, load_tokenizer(checkpoint), "", 100)
    assert len(pieces) > 3
    assert all(piece.endswith(".") for piece in pieces)
    assert all(after.split(".")[0] in before for before, after in pairwise(pieces))
