import itertools
import json
import pickle
import re
import sys

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BlenderbotSmallTokenizer as Reference

from batchloom.models import load_tokenizer
from batchloom.models.errors import RequestError, TokenizerError
from batchloom.models.tokenizers import blenderbot_small


@pytest.fixture(scope="module")
def tokenizer(small_folder):
    return load_tokenizer(small_folder)


@pytest.fixture(scope="module")
def reference(small_folder):
    return Reference.from_pretrained(small_folder)


@given(data=st.data())
@settings(max_examples=500, deadline=None)
def test_ids_are_the_references(tokenizer, reference, hard_texts, data):
    text = data.draw(hard_texts)
    assert tokenizer.encode_batch([text]) == [reference(text)["input_ids"]]


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_pairs_follow_each_other_without_special_tokens(tokenizer, reference, hard_texts, data):
    text, pair = data.draw(hard_texts), data.draw(hard_texts)
    expected = reference([text], [pair])["input_ids"]
    assert tokenizer.encode_batch([text], [pair]) == expected
    assert tokenizer.num_special_tokens() == tokenizer.num_special_tokens(pair=True) == 0


@given(ids=st.lists(st.integers(0, 400), max_size=30), skip=st.booleans())
@settings(max_examples=300, deadline=None)
def test_decoding_is_the_references_also_for_ids_that_do_not_exist(tokenizer, reference, ids, skip):
    assert tokenizer.decode_batch([ids], skip) == [reference.decode(ids, skip_special_tokens=skip)]


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_offsets_point_at_the_text_of_each_token(tokenizer, reference, hard_texts, data):
    text = data.draw(hard_texts)
    (encoded,) = tokenizer.encode_offsets([text])
    assert encoded.ids.tolist() == tokenizer.encode_batch([text])[0]
    places = encoded.offsets.tolist()
    assert places == sorted(places)
    for index, (start, end) in zip(encoded.ids.tolist(), places, strict=True):
        token, span = reference.convert_ids_to_tokens(index), text[start:end]
        assert start < end
        # İ becomes two characters and Σ one of two: what is left of them does not read like their lower case
        if index != tokenizer.unk_token_id and span != "\n" and not {"İ", "Σ"} & set(text):
            assert token in (span, span.lower(), span.lower() + "@@")


def test_offsets_words_and_sequences_of_an_example(tokenizer):
    (encoded,) = tokenizer.encode_offsets(["Hello, it's\n__end__"], ["the"])
    words = list(zip(encoded.sequence_ids.tolist(), encoded.word_ids.tolist(), strict=True))
    assert sorted(set(words)) == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (1, 0)]
    text = "Hello, it's\n__end__"
    first = encoded.offsets[encoded.sequence_ids == 0]
    assert "".join(text[start:end] for start, end in first) == "Hello,it's\n__end__"
    assert encoded.ids[words.index((0, 6))] == tokenizer.eos_token_id


def test_a_capital_that_becomes_two_characters_keeps_the_offsets_in_place(tokenizer):
    (encoded,) = tokenizer.encode_offsets(["İİ the"])
    assert {tuple(span) for span in encoded.offsets[encoded.word_ids == 0].tolist()} <= {(0, 1), (0, 2), (1, 2)}
    assert encoded.offsets[encoded.word_ids == 1][-1][1] == 6


def test_white_space_is_what_the_references_regex_module_takes_for_it():
    """re's own class would also split at U+001C to U+001F."""
    ours = re.compile(f"[{blenderbot_small._SPACE}]")
    theirs = regex.compile(r"\s")
    characters = map(chr, range(sys.maxunicode + 1))
    assert [c for c in characters if bool(ours.match(c)) != bool(theirs.match(c))] == []


def test_a_line_end_is_a_token_after_a_word_but_not_after_an_apostrophe(tokenizer, reference):
    new_line = reference.convert_tokens_to_ids("__newln__")
    assert tokenizer.encode_batch(["the\n", "the.\n", "the'\n", "\n", "the \n"]) == [
        reference(text)["input_ids"] for text in ["the\n", "the.\n", "the'\n", "\n", "the \n"]
    ]
    assert [new_line in ids for ids in tokenizer.encode_batch(["the\n", "the.\n", "the'\n", "\n"])] == [
        True,
        True,
        False,
        False,
    ]


def test_flat_ids_are_those_of_the_batch(tokenizer, sentences):
    ids, offsets = tokenizer.encode_flat(["", *sentences, ""])
    assert (ids.dtype, offsets.dtype) == ("int32", "int32")
    rows = [ids[start:end].tolist() for start, end in itertools.pairwise(offsets)]
    assert rows == tokenizer.encode_batch(["", *sentences, ""])
    assert [len(array) for array in tokenizer.encode_flat([])] == [0, 1]


def test_what_is_remembered_changes_no_answer_and_has_an_end(small_folder, sentences, monkeypatch):
    fresh = load_tokenizer(small_folder)
    expected = fresh.encode_batch(sentences)
    monkeypatch.setattr(blenderbot_small, "_MAX_CACHED_WORDS", 3)
    frugal = load_tokenizer(small_folder)
    assert frugal.encode_batch(sentences) == frugal.encode_batch(sentences) == expected
    assert len(frugal._word_ids) == 3


def test_it_can_be_pickled_without_what_it_remembers(tokenizer, small_folder, sentences):
    fresh = load_tokenizer(small_folder)
    size = len(pickle.dumps(fresh))
    fresh.encode_batch(sentences)
    assert len(pickle.dumps(fresh)) == size
    assert pickle.loads(pickle.dumps(fresh)).encode_batch(sentences) == tokenizer.encode_batch(sentences)


def test_a_lone_surrogate_is_an_unknown_character(tokenizer, reference):
    assert tokenizer.encode_batch(["\ud800"]) == [reference("\ud800")["input_ids"]] == [[tokenizer.unk_token_id]]


def test_spaces_are_cleaned_up_only_where_the_configuration_says_so(copy_of, small_folder, tokenizer):
    """transformers did it by default before 4.45; since then, and here, tokenizer_config.json decides."""
    config = {"tokenizer_class": "BlenderbotSmallTokenizer", "clean_up_tokenization_spaces": True}
    folder = copy_of(small_folder, tokenizer_config=config)
    ids = tokenizer.encode_batch(["hello world, the cat's ok."])
    assert tokenizer.decode_batch(ids) == ["hello world , the cat ' s ok ."]
    assert load_tokenizer(folder).decode_batch(ids) == ["hello world, the cat's ok."]
    assert Reference.from_pretrained(folder).decode(ids[0]) == "hello world, the cat's ok."


def test_added_tokens_are_kept_whole_and_left_out_where_they_are_special(copy_of, small_folder, tokenizer):
    size = tokenizer.vocab_size
    folder = copy_of(
        small_folder,
        added_tokens={"<persona>": size, "<p>": size + 1},
        special_tokens_map={"additional_special_tokens": ["<persona>"]},
    )
    ours, reference = load_tokenizer(folder), Reference.from_pretrained(folder)
    texts = ["the<persona>the <p>cat", "<persona", "<persona><p>"]
    assert ours.encode_batch(texts) == [reference(text)["input_ids"] for text in texts]
    assert ours.vocab_size == size + 2
    assert ours.decode_batch(ours.encode_batch(texts)) == [
        reference.decode(ids, skip_special_tokens=True) for ids in ours.encode_batch(texts)
    ]


def test_vocabulary_and_merges_are_also_taken_from_tokenizer_json(copy_of, small_folder, tokenizer, sentences):
    """transformers 4 wrote one whose other parts are a byte-level tokenizer's: only the model in it is right."""
    merges = [line.split() for line in (small_folder / "merges.txt").read_text("utf-8").splitlines()[1:]]
    vocabulary = json.loads((small_folder / "vocab.json").read_text("utf-8"))
    folder = copy_of(
        small_folder, vocab=None, tokenizer={"model": {"type": "BPE", "vocab": vocabulary, "merges": merges}}
    )
    assert load_tokenizer(folder).encode_batch(sentences) == tokenizer.encode_batch(sentences)


def test_a_vocabulary_without_unknown_token_is_refused(copy_of, small_folder):
    folder = copy_of(small_folder, vocab={"a": 0, "__start__": 1})
    with pytest.raises(TokenizerError, match="no unknown token among the 2 tokens"):
        load_tokenizer(folder)


def test_texts_that_are_no_strings_are_refused_by_number(tokenizer):
    with pytest.raises(RequestError, match="text 1 is a NoneType"):
        tokenizer.encode_batch(["a", None])
    with pytest.raises(RequestError, match="2 texts and 1 pairs"):
        tokenizer.encode_batch(["a", "b"], ["c"])


def test_a_million_characters_without_a_space_are_encoded_in_seconds(tokenizer):
    (ids,) = tokenizer.encode_batch(["thecat" * 166_667])
    assert tokenizer.decode_batch([ids]) == ["thecat" * 166_667]


def test_special_tokens_that_are_to_be_split_are_refused_in_words(copy_of, small_folder):
    config = {"tokenizer_class": "BlenderbotSmallTokenizer", "split_special_tokens": True}
    with pytest.raises(TokenizerError, match="split_special_tokens = true is not supported for this kind"):
        load_tokenizer(copy_of(small_folder, tokenizer_config=config))
