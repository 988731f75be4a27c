"""A long text in pieces has the tokens, and the places of the tokens, of the text encoded whole."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as LibraryBackend

from batchloom.models import load_tokenizer
from batchloom.models.tokenizers import library, pieces
from batchloom.models.tokenizers.pieces import cut_at_spaces, is_local
from batchloom.models.tokenizers.tokenizer import NO_TEXT


@pytest.fixture(scope="module", params=["bart_folder", "blenderbot_folder", "bloom_folder", "small_folder"])
def tokenizer(request: pytest.FixtureRequest):
    return load_tokenizer(request.getfixturevalue(request.param))


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_ids_and_places_are_those_of_the_whole_text(tokenizer, hard_texts, data) -> None:
    parts = data.draw(st.lists(st.one_of(hard_texts, st.sampled_from(["a b", "the cat", " 1 2", "é ü"])), max_size=8))
    texts = ["".join(parts), " ".join(parts)]
    whole = tokenizer.encode_batch(texts), tokenizer.encode_batch(texts, add_special_tokens=False)
    encoded = tokenizer.encode_offsets(texts)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pieces, "PIECE_CHARACTERS", 1)
        patched.setattr(library, "_CHARACTERS_AT_A_TIME", 7)
        in_pieces = tokenizer.encode_batch(texts), tokenizer.encode_batch(texts, add_special_tokens=False)
        flat, offsets = tokenizer.encode_flat(texts)
        spans = [tokenizer.token_spans(text) for text in texts]
        assert tokenizer.encode_offsets(texts) == encoded
    assert in_pieces == whole
    assert [flat[offsets[i] : offsets[i + 1]].tolist() for i in range(2)] == whole[0]
    for found, of in zip(spans, encoded, strict=True):
        assert found.tolist() == of.offsets[of.sequence_ids != NO_TEXT].tolist()


def test_pieces_are_the_text_and_begin_before_words() -> None:
    text = "one two  three, four\nfive 6 seven"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pieces, "PIECE_CHARACTERS", 1)
        found = list(cut_at_spaces(text))
    assert [piece.text for piece in found] == ["one", " two  three, four\nfive", " 6", " seven"]
    assert [piece.start for piece in found] == [0, 3, 25, 27]
    assert [piece.is_last for piece in found] == [False, False, False, True]
    assert [piece.text for piece in cut_at_spaces("")] == [""]


def test_only_tokenizers_that_split_at_spaces_get_pieces(bart_folder, bloom_folder) -> None:
    def changed(**parts: object) -> LibraryBackend:
        backend = LibraryBackend.from_file(str(bloom_folder / "tokenizer.json"))
        for name, part in parts.items():
            setattr(backend, name, part)
        return backend

    assert is_local(changed())
    assert is_local(load_tokenizer(bart_folder)._backend)
    assert not is_local(changed(normalizer=normalizers.Strip()))
    assert not is_local(changed(pre_tokenizer=pre_tokenizers.ByteLevel(False, use_regex=False)))
    assert not is_local(changed(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first")))
    for token in (AddedToken("a b"), AddedToken("end", rstrip=True)):
        backend = changed()
        backend.add_tokens([token])
        assert not is_local(backend)


MEASURE = """
import resource, sys
from batchloom.models import load_tokenizer
from batchloom.models.tokenizers import library
tokenizer = load_tokenizer(sys.argv[1])
texts = ["the lazy dog and the quick brown fox " * int(sys.argv[2])] * int(sys.argv[3])
encode = getattr(tokenizer, sys.argv[4])
encode(["warm up"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kept = encode(texts)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sum(map(len, texts)))
"""


@pytest.mark.parametrize("method", ["encode_flat", "encode_offsets"])
@pytest.mark.parametrize(("repeats", "num_texts"), [(80_000, 1), (1000, 80)], ids=["a long text", "many texts"])
def test_memory_is_bounded_by_the_texts(bart_folder, repeats: int, num_texts: int, method: str) -> None:
    """A text of 15 MB took 3.4 GB: 130 bytes for each character that was in the library's hands. Places of tokens, as
    Python's tuples, took as much again."""
    command = [sys.executable, "-c", MEASURE, str(bart_folder), str(repeats), str(num_texts), method]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    grown, num_characters = map(int, done.stdout.split())
    assert grown * 1024 < 64 * (1 << 20) + 20 * num_characters
