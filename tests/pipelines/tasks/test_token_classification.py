"""Token classification against the reference's pipeline, whose offsets include the space before a BLOOM token."""

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import transformers

from batchloom import models
from batchloom.models import load_tokenizer
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks import TaskSpec, create_task, token_classification
from batchloom.pipelines.tasks.base import ColumnKind
from batchloom.pipelines.tasks.entities import Entity, Token, entities_of, groups, without_overlaps
from batchloom.pipelines.tasks.windows import windows

LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}


@pytest.fixture(scope="module")
def tagger(make_checkpoint):
    return make_checkpoint("BloomForTokenClassification", id2label=LABELS, label2id={v: k for k, v in LABELS.items()})


def reference(folder, text, strategy, ignored=("O",), **settings):
    """The pipeline's entities, moved from the space before a word to the word."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    pipeline = transformers.pipeline("token-classification", model=model, tokenizer=tokenizer)
    found = []
    answers = pipeline(text, aggregation_strategy=strategy, ignore_labels=list(ignored), **settings)
    if settings:
        (answers,), text = answers, " ".join(text)
    for one in answers:
        word = text[one["start"] : one["end"]]
        start = one["start"] + len(word) - len(word.lstrip())
        name = one["entity" if strategy == "none" else "entity_group"]
        found.append((name, word.strip() or word, start, start + len(word.strip()), one["score"]))
    return found


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_entities_are_those_of_the_pipeline(ask, equal, tagger, make_sentences, strategy):
    # Under simple a character of several tokens has one label: the pipeline's entities overlap there.
    last = "United Nations, in Geneva!" if strategy == "simple" else "United Nåtions, in Genève!😀"
    texts = [*make_sentences(6, seed=16, longest=12), last]
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


WORDS = [
    ["The", "harbour", "of", "New York", ",", "in", "Genève", "."],
    ["東京の", "川", "を", "見る😀"],
    ["river", "", " ", "zone"],
    ["one"],
]


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_entities_of_words_are_those_of_the_pipeline_with_the_words_that_they_are_of(ask, equal, tagger, strategy):
    options = {"aggregation_strategy": strategy, "ignore_labels": [], "is_split_into_words": True}
    rows = [*WORDS, None, [], ["a", None], [" "]]
    part = ask("token-classification", tagger, {"text": pa.array(rows, pa.list_(pa.string()))}, options=options)
    assert [error and error["kind"] for error in part["error"].to_pylist()] == [
        None, None, None, None, "null_text", "empty_text", "null_text", "empty_text",
    ]  # fmt: skip
    for words, ours in zip(WORDS, part["entities"].to_pylist(), strict=False):
        text = " ".join(words)
        starts = [len(" ".join(words[:number])) + (number > 0) for number in range(len(words))]
        for one in ours:
            assert text[one["start"] : one["end"]] == one["word"]
            first, last = one["start_word"], one["end_word"] - 1
            assert starts[first] <= one["start"] < starts[first] + len(words[first])
            assert starts[last] < one["end"] <= starts[last] + len(words[last])
    names = ("entity_group", "word", "start", "end", "score")
    if strategy in ("none", "simple"):  # whose words are the tokenizer's, and not those that are given
        words = WORDS[3] if strategy == "simple" else WORDS[0]
        ours = part["entities"][3 if strategy == "simple" else 0].as_py()
        theirs = [one for one in reference(tagger, words, strategy, (), is_split_into_words=True) if one[1].strip()]
        equal("token-classification", [[tuple(one[name] for name in names) for one in ours]], [theirs], 1e-5)


def test_words_are_placed_once_a_row_and_not_for_each_entity(ask, tagger, monkeypatch):
    """A row of 100,000 words took hours: all of them were gone through for each of its entities."""
    texts = []
    place = token_classification.word_starts
    monkeypatch.setattr(token_classification, "word_starts", lambda words: texts.append(words) or place(words))
    options = {"ignore_labels": [], "is_split_into_words": True}
    part = ask("token-classification", tagger, {"text": pa.array(WORDS[:2], pa.list_(pa.string()))}, options=options)
    assert len(part["entities"][0]) > 1
    assert texts == WORDS[:2]


def test_each_given_word_has_one_label_in_any_script():
    text = "東京の川 New York"
    tokens = [Token(0, 2, np.zeros(1), 0), Token(2, 3, np.zeros(1), 0), Token(3, 4, np.zeros(1), 0)]
    tokens += [Token(5, 8, np.zeros(1), 1), Token(8, 13, np.zeros(1), 1)]
    found = groups(text, tokens, "first")
    assert [text[word[0].start : word[-1].end] for word in found] == ["東京の川", "New York"]


def test_a_column_of_lists_is_read_where_it_is_said_to_hold_words(tagger):
    (kind,) = classifier_of(tagger, {}).input_columns().values()
    assert kind is ColumnKind.TEXT
    (kind,) = classifier_of(tagger, {"is_split_into_words": True}).input_columns().values()
    assert kind is ColumnKind.TEXTS


def classifier_of(tagger, options):
    checkpoint = models.describe(tagger, task="token-classification")
    spec = TaskSpec(
        task="token-classification", input=InputConfig(paths=()), options=options, generation={}, checkpoint=checkpoint
    )
    return create_task(spec)


def tokens_of(text, *lengths):
    """Tokens of these lengths; of a length of 0, one that shares the last character with the token before."""
    found, start = [], 0
    for length in lengths:
        start -= not length
        found.append(Token(start, start + max(length, 1), np.zeros(1, np.float32)))
        start = found[-1].end
    assert start == len(text)
    return found


@pytest.mark.parametrize(
    ("text", "lengths", "expected"),
    [
        ("New York, naïve", [3, 3, 2, 1, 6], ["New", " York,", " naïve"]),
        ("New\nYork,\tin\u00a0May", [3, 1, 2, 2, 1, 1, 2, 1, 3], ["New", "\n", "York,", "\t", "in", "\u00a0", "May"]),
        ("東京に行く。Tower B", [2, 1, 2, 1, 2, 3, 2], ["東京", "に", "行く", "。", "Tower", " B"]),
        ("กรุงเทพ 서울에서", [3, 4, 3, 2], ["กรุ", "งเทพ", " 서울에서"]),
        ("a Đị", [1, 2, 0, 1], ["a", " Đị"]),
        ("日本", [1, 0, 0, 1, 0], ["日", "本"]),
    ],
    ids=["spaces", "other white space", "japanese", "thai and korean", "two bytes", "bytes of a script without spaces"],
)
def test_words_end_at_white_space_and_without_it_at_tokens(text, lengths, expected):
    found = groups(text, tokens_of(text, *lengths), "first")
    assert [text[word[0].start : word[-1].end] for word in found] == expected


def test_a_text_without_tokens_has_no_words_and_no_entities():
    assert list(groups("", [], "first")) == []
    assert list(entities_of("", [], ["O"], "max")) == []


def scored(start, end, *scores):
    return Token(start, end, np.array(scores, np.float32))


def test_entities_do_not_overlap_under_simple():
    """The bytes of a character are tokens of their own, and each had an entity of it."""
    labels, text = ["O", "B-A", "I-A", "I-B"], "ab😀cd"
    tokens = [scored(0, 1, 0, 1, 0, 0), scored(1, 2, 0, 0, 0.5, 0), scored(2, 3, 0, 0, 0.4, 0)]
    tokens += [scored(2, 3, 0, 0, 0, 0.9), scored(2, 3, 0.8, 0, 0, 0)]
    tokens += [scored(3, 4, 0, 0, 0, 0.5), scored(4, 5, 0, 0, 0.3, 0)]
    found = list(entities_of(text, tokens, labels, "simple"))
    assert [(one.entity_group, one.word) for one in found] == [("A", "ab"), ("B", "😀c"), ("A", "d")]
    assert [one.score for one in found] == pytest.approx([0.75, 0.7, 0.3])
    of_one_kind = [scored(0, 1, 0, 0.5, 0, 0), scored(0, 1, 0, 0.7, 0, 0), scored(1, 2, 0, 0, 0.9, 0)]
    (one,) = entities_of("Åb", of_one_kind, labels, "simple")
    assert (one.word, one.score) == ("Åb", pytest.approx(0.7)), "the mean of all tokens, as the pipeline takes it"


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
def test_entities_of_texts_without_spaces_are_of_their_tokens(ask, tagger, strategy):
    text = "東京の川を見る。Tokyo harbour😀、日本"
    options = {"aggregation_strategy": strategy, "ignore_labels": []}
    part = ask("token-classification", tagger, {"text": [text]}, options=options)
    entities = part["entities"][0].as_py()
    assert all(text[one["start"] : one["end"]] == one["word"] for one in entities)
    assert all(before["end"] <= after["start"] for before, after in pairwise(entities))
    words = "".join(one["word"] for one in entities)
    assert words.replace(" ", "") == text.replace(" ", ""), "every character is in one of them"
    assert len(entities) > 1


@pytest.mark.parametrize("ignored", [[], ["O", "PER"], ["B-LOC", "O"]])
@pytest.mark.parametrize("strategy", ["none", "simple", "first"])
def test_labels_are_left_out_as_the_pipeline_leaves_them_out(ask, equal, tagger, make_sentences, strategy, ignored):
    texts = make_sentences(4, seed=26, longest=12)
    options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
    part = ask("token-classification", tagger, {"text": texts}, options=options)
    names = ("entity_group", "word", "start", "end", "score")
    for text, ours in zip(texts, part["entities"].to_pylist(), strict=True):
        theirs = [one for one in reference(tagger, text, strategy, ignored) if one[1].strip()]
        equal("token-classification", [[tuple(one[name] for name in names) for one in ours]], [theirs], 1e-5)


def test_of_overlapping_entities_the_longest_stays():
    short, long, sure = Entity("A", 0.9, "", 3, 5), Entity("A", 0.2, "", 2, 6), Entity("A", 0.3, "", 2, 6)
    after = Entity("B", 0.1, "", 6, 8)
    assert without_overlaps([after, short, long, sure]) == [sure, after]
    nothing = Entity("O", 0.9, "", 0, 20)
    assert without_overlaps([nothing, sure, after]) == [sure, after], "what is no entity hides none"


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
    with pytest.raises(ConfigError, match=r"no label PERS\. Its labels: O, B-PER"):
        ask("token-classification", tagger, {"text": ["a"]}, options={"ignore_labels": ["O", "PERS"]})
    with pytest.raises(ConfigError, match="stride: is 1024, must be from 0 to 1023"):
        ask("token-classification", tagger, {"text": ["a"]}, options={"stride": 1024})
