"""mBART's tokenizer.json, a Unigram model, is read by the library as it stands; language codes are in its template."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as LibraryBackend
from transformers import MBartTokenizer, PreTrainedTokenizerFast

from batchloom.models import describe, load_tokenizer
from batchloom.models.errors import TokenizerError
from batchloom.models.tokenizers import pieces
from batchloom.models.tokenizers.tokenizer import NO_TEXT

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
CODES = ["en_XX", "ro_RO"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sentences):
    """tokenizer.json in mBART's form: `text </s> en_XX`."""
    backend = LibraryBackend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(sentences * 3, trainer)
    backend.add_special_tokens([*CODES, AddedToken("<mask>", lstrip=True, special=True)])
    end, code = ("</s>", 2), ("en_XX", backend.token_to_id("en_XX"))
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s> en_XX", pair="$A $B </s> en_XX", special_tokens=[end, code]
    )
    backend.enable_truncation(5)
    made = tmp_path_factory.mktemp("mbart")
    backend.save(str(made / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "MBartTokenizer", **tokens, "mask_token": "<mask>"}
    (made / "tokenizer_config.json").write_text(json.dumps({**config, "additional_special_tokens": CODES}))
    return made


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def reference(folder):
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def test_a_text_ends_in_the_end_token_and_the_language_code(tokenizer):
    (ids,) = tokenizer.encode_batch(["The quick brown fox doesn't jump over the lazy dog"])
    assert len(ids) > 7  # the stored truncation at 5 is switched off
    assert ids[-2:] == [2, tokenizer.vocab_size - 3]
    assert tokenizer.num_special_tokens() == tokenizer.num_special_tokens(pair=True) == 2


def test_roles_are_mbarts(tokenizer):
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (tokenizer.unk_token_id, tokenizer.mask_token_id) == (3, tokenizer.vocab_size - 1)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_ids_and_texts_are_the_references(tokenizer, reference, hard_texts, data):
    texts = data.draw(st.lists(hard_texts, min_size=1, max_size=3))
    ids = tokenizer.encode_batch(texts)
    assert ids == [reference(text, truncation=False)["input_ids"] for text in texts]
    assert tokenizer.encode_batch(texts, texts[::-1]) == [
        reference(text, pair, truncation=False)["input_ids"] for text, pair in zip(texts, texts[::-1], strict=True)
    ]
    for skip in (True, False):
        assert tokenizer.decode_batch(ids, skip_special_tokens=skip) == reference.batch_decode(
            ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
        )


def test_what_the_references_mbart_tokenizer_saves_is_read_alike(tmp_path, sentences):
    """Its source language is in the template that it saves."""
    pieces = sorted({letter for sentence in sentences for letter in sentence if letter.strip()})
    vocabulary = [(token, 0.0) for token in SPECIAL] + [("▁", -2.0)] + [(piece, -3.0) for piece in pieces]
    reference = MBartTokenizer(vocab=vocabulary, src_lang="ro_RO")
    reference.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode_batch(sentences) == reference(sentences)["input_ids"]


def test_without_tokenizer_json_the_error_says_where_it_comes_from(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mbart"}))
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json.*of mbart.*save_pretrained"):
        load_tokenizer(tmp_path)


def test_files_that_the_tokenizer_does_not_read_are_not_in_the_fingerprint(tmp_path):
    def hash_with(**files):
        for name, content in files.items():
            (tmp_path / name.replace("__", ".")).write_text(content)
        save_file(
            {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, tmp_path / "model.safetensors"
        )
        return describe(str(tmp_path)).tokenizer_hash

    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "encoder_ffn_dim": 4, "decoder_ffn_dim": 4}
    tensors = {f"{stack}.layers.0.fc1.weight": (4, 16) for stack in ("encoder", "decoder")}
    plain = hash_with(config__json=json.dumps({"model_type": "mbart", **sizes}), tokenizer__json="{}")
    assert hash_with(vocab__json="{}", merges__txt="") == plain
    assert hash_with(tokenizer__json="{ }") != plain


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_long_text_in_pieces_has_the_tokens_of_the_whole(tokenizer, hard_texts, data):
    text = " a ".join(data.draw(st.lists(hard_texts, max_size=6)))
    ids, (encoded,) = tokenizer.encode_batch([text]), tokenizer.encode_offsets([text])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pieces, "PIECE_CHARACTERS", 1)
        assert tokenizer.encode_batch([text]) == ids
        spans = tokenizer.token_spans(text).tolist()
        assert tokenizer.encode_offsets([text]) == [encoded]
    assert spans == encoded.offsets[encoded.sequence_ids != NO_TEXT].tolist()
