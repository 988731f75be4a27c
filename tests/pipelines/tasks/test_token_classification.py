"""Token classification against the reference's pipeline, whose offsets include the space before a BLOOM token."""

import json
from itertools import pairwise

import numpy as np
import pytest
import transformers

from batchloom.models import load_tokenizer
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks.entities import Entity, Token, entities_of, without_overlaps, words
from batchloom.pipelines.tasks.windows import windows

LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}


@pytest.fixture(scope="module")
def tagger(make_checkpoint):
    return make_checkpoint("BloomForTokenClassification", id2label=LABELS, label2id={v: k for k, v in LABELS.items()})


def reference(folder, text, strategy):
    """The pipeline's entities, moved from the space before a word to the word."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    pipeline = transformers.pipeline("token-classification", model=model, tokenizer=tokenizer)
    found = []
    for one in pipeline(text, aggregation_strategy=strategy):
        word = text[one["start"] : one["end"]]
        start = one["start"] + len(word) - len(word.lstrip())
        name = one["entity" if strategy == "none" else "entity_group"]
        found.append((name, word.strip() or word, start, start + len(word.strip()), one["score"]))
    return found


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_entities_are_those_of_the_pipeline(ask, equal, tagger, make_sentences, strategy):
    texts = [*make_sentences(6, seed=16, longest=12), "United Nåtions, in Genève!😀"]
    part = ask("token-classification", tagger, {"text": texts}, options={"aggregation_strategy": strategy})
    for text, ours in zip(texts, part["entities"].to_pylist(), strict=True):
        names = ("entity_group", "word", "start", "end", "score")
        theirs = [one for one in reference(tagger, text, strategy) if one[1].strip()]  # a space alone is no name
        equal("token-classification", [[tuple(one[name] for name in names) for one in ours]], [theirs], 1e-5)
        assert all(text[one["start"] : one["end"]] == one["word"] for one in ours)


def test_a_long_text_is_read_in_windows(ask, tagger, make_sentences):
    text = " ".join(make_sentences(90, seed=17))
    (encoded,) = load_tokenizer(tagger).encode_offsets([text])
    assert len(encoded.ids) > 2048
    part = ask("token-classification", tagger, {"text": [text]}, options={"aggregation_strategy": "simple"})
    entities = part["entities"][0].as_py()
    assert all(text[one["start"] : one["end"]] == one["word"] for one in entities)
    assert all(before["end"] <= after["start"] for before, after in pairwise(entities))
    assert entities[-1]["start"] > encoded.offsets[2048][0]
    assert part["num_input_tokens"][0].as_py() == len(encoded.ids) + 128 * (
        len(list(windows(len(encoded.ids), 2048, 128))) - 1
    )
    assert part["num_truncated_tokens"][0].as_py() == 0


def test_words_go_on_until_a_space():
    text = "New York, naïve"
    tokens = [Token(start, end, np.zeros(1, np.float32)) for start, end in [(0, 3), (3, 6), (6, 8), (8, 9), (9, 15)]]
    assert [[text[one.start : one.end] for one in word] for word in words(text, tokens)] == [
        ["New"], [" Yo", "rk", ","], [" naïve"],
    ]  # fmt: skip
    tokens = [Token(start, end, np.zeros(1, np.float32)) for start, end in [(0, 1), (1, 3), (2, 3), (3, 4)]]
    assert len(list(words("a Đị", tokens))) == 2, "the second byte of a letter after a space begins no word"
    assert list(words("", [])) == []
    assert list(entities_of("", [], ["O"], "max")) == []


def test_of_overlapping_entities_the_longest_stays():
    short, long, sure = Entity("A", 0.9, "", 3, 5), Entity("A", 0.2, "", 2, 6), Entity("A", 0.3, "", 2, 6)
    after = Entity("B", 0.1, "", 6, 8)
    assert without_overlaps([after, short, long, sure]) == [sure, after]


@pytest.mark.parametrize(
    ("num_tokens", "size", "overlap", "expected"),
    [
        (10, 4, 1, [(0, 4), (3, 7), (6, 10)]),
        (4, 4, 1, [(0, 4)]),
        (5, 4, 0, [(0, 4), (4, 5)]),
        (0, 4, 1, [(0, 0)]),
    ],
)
def test_windows_cover_all_tokens(num_tokens, size, overlap, expected):
    assert list(windows(num_tokens, size, overlap)) == expected


def test_what_cannot_be_meant_is_refused(ask, tagger):
    with pytest.raises(ConfigError, match="one of none, simple, first, average, max"):
        ask("token-classification", tagger, {"text": ["a"]}, options={"aggregation_strategy": json.dumps(1)})
    with pytest.raises(ConfigError, match="stride: is 1024, must be from 0 to 1023"):
        ask("token-classification", tagger, {"text": ["a"]}, options={"stride": 1024})
