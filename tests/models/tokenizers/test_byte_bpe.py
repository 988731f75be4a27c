import itertools
import json
from functools import cache

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BartTokenizer, BlenderbotTokenizer, PreTrainedTokenizerFast

from batchloom.models import Encoded, load_tokenizer
from batchloom.models.errors import TokenizerError
from batchloom.models.tokenizers.vocabulary import read_vocabulary


@pytest.fixture(scope="module")
def bart(bart_folder):
    return load_tokenizer(bart_folder)


@pytest.fixture(scope="module")
def bart_reference(bart_folder):
    # transformers 5 forgot that BART's mask swallows the space before it; 4 and the hub's tokenizer.json say so
    mask = AddedToken("<mask>", lstrip=True, special=True)
    return BartTokenizer.from_pretrained(bart_folder, mask_token=mask)


@pytest.fixture(scope="module")
def blenderbot(blenderbot_folder):
    return load_tokenizer(blenderbot_folder)


@pytest.fixture(scope="module")
def blenderbot_reference(blenderbot_folder):
    return BlenderbotTokenizer.from_pretrained(blenderbot_folder, mask_token=None)


@pytest.fixture(scope="module")
def bloom(bloom_folder):
    return load_tokenizer(bloom_folder)


@pytest.fixture(scope="module")
def bloom_reference(bloom_folder):
    return PreTrainedTokenizerFast.from_pretrained(bloom_folder)


@pytest.fixture(scope="module")
def plain_ids(bart_folder):
    """Text to ids by the plain loop over words, as GPT-2's and transformers' slow tokenizers had it."""
    vocabulary, merges = read_vocabulary(bart_folder)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    assert set(letters.values()) == set(ByteLevel.alphabet())

    @cache
    def of_word(word):
        symbols = [letters[byte] for byte in word.encode()]
        while len(symbols) > 1:
            pairs = list(itertools.pairwise(symbols))
            best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            place = pairs.index(best)
            symbols[place : place + 2] = ["".join(best)]
        return [vocabulary[symbol] for symbol in symbols]

    return lambda text: [index for word in words.findall(text) for index in of_word(word)]


def assert_same_encoding(ours, reference, texts, pairs=None):
    expected = reference(texts, pairs, return_offsets_mapping=True)
    assert ours.encode_batch(texts, pairs) == expected["input_ids"]
    for index, encoded in enumerate(ours.encode_offsets(texts, pairs)):
        places = expected["offset_mapping"][index], expected.sequence_ids(index), expected.word_ids(index)
        assert encoded == Encoded.of(expected["input_ids"][index], *places)
    bare = reference(texts, pairs, add_special_tokens=False)["input_ids"]
    assert ours.encode_batch(texts, pairs, add_special_tokens=False) == bare


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_bart_encodes_texts_and_pairs_like_the_reference(bart, bart_reference, hard_texts, data):
    texts = [data.draw(hard_texts), data.draw(hard_texts)]
    assert_same_encoding(bart, bart_reference, texts)
    assert_same_encoding(bart, bart_reference, texts, texts[::-1])


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_bart_encodes_like_the_plain_loop_without_the_library(bart, plain_ids, hard_texts, data):
    text = regex.sub("<(s|/s|pad|unk|mask)>", "", data.draw(hard_texts))
    assert bart.encode_batch([text], add_special_tokens=False) == [plain_ids(text)]


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_blenderbot_encodes_like_the_reference_plus_the_end_token(blenderbot, blenderbot_reference, hard_texts, data):
    """transformers 5 builds Blenderbot's tokenizer without the template that appends `</s>`."""
    text, pair = data.draw(hard_texts), data.draw(hard_texts)
    without = blenderbot_reference([text])["input_ids"][0]
    assert blenderbot.encode_batch([text]) == [[*without, 2]]
    without = blenderbot_reference([text], [pair])["input_ids"][0]
    assert blenderbot.encode_batch([text], [pair]) == [[*without, 2]]


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_bloom_encodes_like_the_reference_without_special_tokens(bloom, bloom_reference, hard_texts, data):
    texts = [data.draw(hard_texts), data.draw(hard_texts)]
    assert_same_encoding(bloom, bloom_reference, texts)
    assert_same_encoding(bloom, bloom_reference, texts, texts[::-1])
    assert bloom.num_special_tokens() == bloom.num_special_tokens(pair=True) == 0


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_bloom_is_the_same_from_vocabulary_and_merges(bloom, bloom_as_vocabulary, hard_texts, data):
    text = data.draw(hard_texts)
    assert bloom_as_vocabulary.encode_batch([text]) == bloom.encode_batch([text])
    assert bloom_as_vocabulary.encode_offsets([text]) == bloom.encode_offsets([text])


@pytest.fixture(scope="module")
def bloom_as_vocabulary(bloom_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bloom_vocabulary")
    vocabulary, merges = read_vocabulary(bloom_folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    return load_tokenizer(folder)


def test_templates_are_those_of_the_families(bart, blenderbot, bloom):
    assert bart.encode_batch([""], [""]) == [[0, 2, 2, 2]]
    assert bart.encode_batch([""]) == [[0, 2]]
    assert (bart.num_special_tokens(), bart.num_special_tokens(pair=True)) == (2, 4)
    assert blenderbot.encode_batch([""], [""]) == blenderbot.encode_batch([""]) == [[2]]
    assert (blenderbot.num_special_tokens(), blenderbot.num_special_tokens(pair=True)) == (1, 1)
    assert bloom.encode_batch([""], [""]) == [[]]


def test_special_ids_are_the_families(bart, blenderbot, bloom):
    def ids(t):
        return (t.bos_token_id, t.eos_token_id, t.pad_token_id, t.unk_token_id, t.mask_token_id)

    assert ids(bart) == (0, 2, 1, 3, bart.vocab_size - 1)
    assert ids(blenderbot) == (1, 2, 0, 3, None)
    assert ids(bloom) == (1, 2, 3, 0, None)


def test_blenderbot_puts_a_space_in_front_and_the_others_do_not(bart, blenderbot, bloom):
    assert blenderbot.encode_batch(["Hello"]) == blenderbot.encode_batch([" Hello"])
    assert bart.encode_batch(["Hello"]) != bart.encode_batch([" Hello"])
    assert bloom.encode_batch(["Hello"]) != bloom.encode_batch([" Hello"])


def test_lines_of_merges_may_end_in_crlf(copy_of, bart_folder, bart, sentences):
    folder = copy_of(bart_folder)
    lines = (folder / "merges.txt").read_bytes()
    (folder / "merges.txt").write_bytes(lines.replace(b"\n", b"\r\n"))
    assert load_tokenizer(folder).encode_batch(sentences) == bart.encode_batch(sentences)


def test_merges_need_neither_a_first_comment_nor_a_last_line_end(copy_of, bart_folder, bart, sentences):
    folder = copy_of(bart_folder)
    lines = (folder / "merges.txt").read_bytes().removesuffix(b"\n").split(b"\n", 1)[1]
    (folder / "merges.txt").write_bytes(lines)
    assert load_tokenizer(folder).encode_batch(sentences) == bart.encode_batch(sentences)


def test_a_merge_outside_the_vocabulary_is_refused(copy_of, bart_folder):
    folder = copy_of(bart_folder)
    with (folder / "merges.txt").open("a", encoding="utf-8") as merges:
        merges.write("Hello Hello\n")
    with pytest.raises(TokenizerError, match=r"merges.txt and vocab.json do not fit.*Hello"):
        load_tokenizer(folder)


def test_a_line_of_merges_that_is_no_pair_is_refused_by_number(copy_of, bart_folder):
    folder = copy_of(bart_folder)
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nh e l\n")
    with pytest.raises(TokenizerError, match=r"merges.txt:3: expected two tokens, found 'h e l'"):
        load_tokenizer(folder)


def test_a_template_whose_token_is_not_in_the_vocabulary_is_refused(copy_of, bart_folder):
    folder = copy_of(bart_folder, tokenizer_config={"tokenizer_class": "BartTokenizer", "sep_token": "[SEP]"})
    with pytest.raises(TokenizerError, match=r"sep_token '\[SEP\]' is not among"):
        load_tokenizer(folder)
