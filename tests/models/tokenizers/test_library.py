import itertools
import json
import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from batchloom.models import load_tokenizer
from batchloom.models.errors import RequestError
from batchloom.models.tokenizers import library


@pytest.fixture(scope="module")
def tokenizer(bart_folder):
    return load_tokenizer(bart_folder)


@pytest.fixture(scope="module")
def reference(tokenizer):
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._backend, mask_token="<mask>", **roles)


def test_stored_truncation_and_padding_are_switched_off(bloom_folder):
    """bart-large-cnn's tokenizer.json is stored with truncation at 256: articles lost most of their text."""
    tokenizer = load_tokenizer(bloom_folder)
    (short, long) = tokenizer.encode_batch(["a", "a b c d e f g h i j"])
    assert len(short) == 1
    assert len(long) >= 10


def test_stored_dropout_is_switched_off(copy_of, bloom_folder, sentences):
    """A trainer's BPE dropout cuts the same text differently each time."""
    stored = json.loads((bloom_folder / "tokenizer.json").read_text())
    stored["model"]["dropout"] = 0.5
    tokenizer = load_tokenizer(copy_of(bloom_folder, tokenizer=stored))
    assert tokenizer.encode_batch(sentences) == load_tokenizer(bloom_folder).encode_batch(sentences)


@pytest.mark.parametrize("kind", ["bart_folder", "bloom_folder"])
def test_special_tokens_in_texts_are_text_where_the_settings_say_so(request, copy_of, kind, sentences):
    """split_special_tokens was not read: a page with "</s>" in it gave end tokens, and none in the reference."""
    folder = request.getfixturevalue(kind)
    config = json.loads((folder / "tokenizer_config.json").read_text()) if kind == "bart_folder" else {}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config, "split_special_tokens": True}
    copy = copy_of(folder, tokenizer_config=config)
    texts = [*sentences, "a </s> b <mask>", "<s><pad>"]
    reference = AutoTokenizer.from_pretrained(copy)
    assert load_tokenizer(copy).encode_batch(texts) == [reference(text).input_ids for text in texts]
    assert load_tokenizer(copy).encode_batch(texts) != load_tokenizer(folder).encode_batch(texts)


def test_batches_larger_than_one_call_of_the_library_keep_their_order(tokenizer, monkeypatch, sentences):
    texts = [f"{number} {sentence}" for number in range(3) for sentence in sentences]
    expected = tokenizer.encode_batch(texts), tokenizer.encode_batch(texts, texts[::-1])
    monkeypatch.setattr(library, "_TEXTS_AT_A_TIME", 4)
    assert (tokenizer.encode_batch(texts), tokenizer.encode_batch(texts, texts[::-1])) == expected
    ids, offsets = tokenizer.encode_flat(texts)
    assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == expected[0]
    with pytest.raises(RequestError, match="text 17 is a float"):
        tokenizer.encode_flat([*texts[:17], 1.5])


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_flat_ids_are_those_of_the_batch(tokenizer, hard_texts, data):
    texts = data.draw(st.lists(hard_texts, max_size=4))
    for pairs in (None, texts[::-1]):
        for special in (True, False):
            ids, offsets = tokenizer.encode_flat(texts, pairs, special)
            assert (ids.dtype, offsets.dtype, len(offsets)) == (np.int32, np.int32, len(texts) + 1)
            rows = [ids[start:end].tolist() for start, end in itertools.pairwise(offsets)]
            assert rows == tokenizer.encode_batch(texts, pairs, special)


def test_flat_ids_are_arrow_buffers_without_a_copy(tokenizer, sentences):
    arrow = pytest.importorskip("pyarrow")
    ids, offsets = tokenizer.encode_flat(sentences)
    column = arrow.ListArray.from_arrays(arrow.array(offsets), arrow.array(ids))
    assert column.to_pylist() == tokenizer.encode_batch(sentences)
    assert arrow.array(ids).buffers()[1].address == ids.ctypes.data


@given(ids=st.lists(st.one_of(st.integers(0, 700), st.integers(0, 2**32 - 1)), max_size=30), skip=st.booleans())
@settings(max_examples=300, deadline=None)
def test_decoding_is_the_references_also_for_ids_that_do_not_exist(tokenizer, reference, ids, skip):
    """BLOOM's model has 250880 rows for 250680 tokens: a sampled id may be none of the tokenizer's."""
    assert tokenizer.decode_batch([ids], skip) == [reference.decode(ids, skip_special_tokens=skip)]


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_text_comes_back_byte_for_byte(tokenizer, hard_texts, data):
    text = data.draw(hard_texts).replace("<mask>", "")  # the one that swallows a space
    ids = tokenizer.encode_batch([text])
    decoded = tokenizer.decode_batch(ids, skip_special_tokens=False)
    assert decoded == [f"<s>{text}</s>"]


def test_arrays_are_decoded_like_lists(tokenizer, sentences):
    ids, offsets = tokenizer.encode_flat(sentences)
    rows = [ids[start:end] for start, end in itertools.pairwise(offsets)]
    assert tokenizer.decode_batch(rows) == sentences


def test_a_negative_id_is_refused_by_number(tokenizer):
    with pytest.raises(RequestError, match="sequence 1 to decode"):
        tokenizer.decode_batch([[5, 6], [5, -100]])


@pytest.mark.parametrize("bad", ["a\ud800b", "\udfff", "a\ude00\ud83d"])
def test_lone_surrogates_are_read_as_replacement_characters(tokenizer, bad):
    good = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in bad)
    assert tokenizer.encode_batch(["x", bad]) == tokenizer.encode_batch(["x", good])
    assert tokenizer.encode_batch(["x", "y"], ["x", bad]) == tokenizer.encode_batch(["x", "y"], ["x", good])
    assert tokenizer.encode_offsets([bad]) == tokenizer.encode_offsets([good])


def test_nul_bytes_come_back(tokenizer):
    ids = tokenizer.encode_batch(["a\x00b", "\x00"])
    assert tokenizer.decode_batch(ids) == ["a\x00b", "\x00"]


def test_texts_that_are_no_strings_are_refused_by_number(tokenizer):
    with pytest.raises(RequestError, match="text 1 is a NoneType, expected a string"):
        tokenizer.encode_batch(["a", None])
    with pytest.raises(RequestError, match="pair 0 is a int"):
        tokenizer.encode_flat(["a"], [3])
    with pytest.raises(RequestError, match="1 texts and 2 pairs"):
        tokenizer.encode_offsets(["a"], ["b", "c"])


def test_it_can_be_pickled(tokenizer, sentences):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode_offsets(sentences, sentences) == tokenizer.encode_offsets(sentences, sentences)
    assert (copy.name, copy.vocab_size, copy.mask_token_id) == (
        tokenizer.name,
        tokenizer.vocab_size,
        tokenizer.mask_token_id,
    )


@pytest.mark.parametrize("piece", ["a", "é", "\n", " ", ".", "the cat ", "中", "<mask>"])
def test_a_million_characters_are_encoded_whole(tokenizer, piece):
    text = (piece * 1_000_000)[:1_000_000]
    ids, offsets = tokenizer.encode_flat([text])
    assert offsets.tolist() == [0, len(ids)]
    assert tokenizer.decode_batch([ids], skip_special_tokens=False) == [f"<s>{text}</s>"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("clean_up_tokenization_spaces", "a , b ."),
        ("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", "a, b."),
    ],
)
def test_spaces_that_bpe_wrote_stay(copy_of, bart_folder, tokenizer, key, expected):
    """The key that old checkpoints carry is for tokenizers that lose spaces; transformers 5 ignores it for BPE."""
    folder = copy_of(bart_folder, tokenizer_config={"tokenizer_class": "BartTokenizer", key: True})
    ids = tokenizer.encode_batch(["a , b ."])
    assert load_tokenizer(folder).decode_batch(ids) == [expected]
