"""The real tokenizers over real text; skipped where the data is absent."""

import json
import re
from itertools import islice

import pytest
from transformers import BartTokenizer, BlenderbotSmallTokenizer, BlenderbotTokenizer

from batchloom.models import load_tokenizer
from batchloom.models.tokenizers.vocabulary import read_vocabulary


@pytest.fixture(scope="module")
def bart(real_data):
    return load_tokenizer(real_data / "tokenizers/bart-large-cnn")


@pytest.fixture(scope="module")
def blenderbot(real_data):
    return load_tokenizer(real_data / "tokenizers/blenderbot-400M-distill")


@pytest.fixture(scope="module")
def blenderbot_small(real_data):
    return load_tokenizer(real_data / "tokenizers/blenderbot_small-90M")


@pytest.fixture(scope="module")
def corpora(real_data):
    """Some of every corpus, 1.5 million characters: meetings, questions, sentence pairs, words, dialogues."""
    folder = real_data / "corpora"
    texts = []
    with (folder / "qmsum/ALL_jsonl_val.jsonl").open(encoding="utf-8") as lines:
        for line in islice(lines, 5):
            turns = [turn["speaker"] + ": " + turn["content"] for turn in json.loads(line)["meeting_transcripts"]]
            texts += ["\n".join(turns), *turns]
    for article in json.loads((folder / "xquad/xquad.en.json").read_text("utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            texts += [paragraph["context"], *(qa["question"] for qa in paragraph["qas"])]
    for path in sorted(folder.glob("snli/*")):
        texts += path.read_text("utf-8").splitlines()[:2000]
    texts += (folder / "wikiann/en.dev").read_text("utf-8").splitlines()[:5000]
    for dialogue in json.loads((folder / "schema_guided_dialogue/dev_dialogues_001.json").read_text("utf-8")):
        texts.append("  ".join(turn["utterance"] for turn in dialogue["turns"]))
    return texts


def test_known_ids_of_bart(bart):
    assert bart.encode_batch(["Hello world", " Hello world"]) == [[0, 31414, 232, 2], [0, 20920, 232, 2]]
    assert (bart.vocab_size, bart.bos_token_id, bart.pad_token_id, bart.eos_token_id) == (50265, 0, 1, 2)
    assert (bart.unk_token_id, bart.mask_token_id, bart.name) == (3, 50264, "bart-large-cnn")
    assert len(bart.encode_batch(["word " * 1000])[0]) == 1003  # stored truncation: 256


def test_known_ids_of_blenderbot(blenderbot):
    assert blenderbot.encode_batch(["Hello world", " Hello world"]) == [[6950, 1085, 2], [6950, 1085, 2]]
    assert (blenderbot.vocab_size, blenderbot.mask_token_id) == (8008, None)
    assert (blenderbot.pad_token_id, blenderbot.bos_token_id, blenderbot.eos_token_id) == (0, 1, 2)


def test_known_ids_of_blenderbot_small(blenderbot_small):
    assert blenderbot_small.encode_batch(["sam", "SAM", "__start__ sam __end__"]) == [[1384], [1384], [1, 1384, 2]]
    assert (blenderbot_small.vocab_size, blenderbot_small.unk_token_id) == (54944, 3)


def test_bart_is_the_reference_over_the_corpora_and_text_comes_back(bart, real_data, corpora):
    reference = BartTokenizer.from_pretrained(real_data / "tokenizers/bart-large-cnn")
    ids = bart.encode_batch(corpora)
    assert ids == reference(corpora)["input_ids"]
    assert bart.decode_batch(ids) == corpora


def test_bart_is_the_same_from_vocabulary_and_merges(bart, real_data, corpora, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((real_data / "tokenizers/bart-large-cnn" / name).read_bytes())
    assert load_tokenizer(tmp_path).encode_offsets(corpora[:2000]) == bart.encode_offsets(corpora[:2000])


def test_blenderbot_is_the_reference_with_an_end_token_and_text_comes_back(blenderbot, real_data, corpora):
    folder = real_data / "tokenizers/blenderbot-400M-distill"
    ids = blenderbot.encode_batch(corpora)
    # Loaded from the hub's tokenizer.json, transformers has the end token; built from vocab.json it loses it
    assert ids == BlenderbotTokenizer.from_pretrained(folder)(corpora)["input_ids"]
    vocabulary, merges = read_vocabulary(folder)
    built = BlenderbotTokenizer(vocab=vocabulary, merges=merges, mask_token=None)
    assert ids == [[*row, 2] for row in built(corpora)["input_ids"]]
    assert blenderbot.decode_batch(ids) == [re.sub(r"^(?=\S)", " ", text) for text in corpora]


def test_blenderbot_small_is_the_reference_over_the_corpora(blenderbot_small, real_data, corpora):
    reference = BlenderbotSmallTokenizer.from_pretrained(real_data / "tokenizers/blenderbot_small-90M")
    ids = blenderbot_small.encode_batch(corpora)
    assert ids == reference(corpora)["input_ids"]
    assert blenderbot_small.decode_batch(ids) == reference.batch_decode(ids, skip_special_tokens=True)


def test_ids_of_the_slow_tokenizers_that_transformers_4_still_had(bart, blenderbot, blenderbot_small):
    """Written down from transformers 4.57.1; 5 has no slow tokenizers for the byte-level families."""
    first = "We'll  see naïve café\n\n1234 <mask>!"
    second = "It's İstanbul, ΟΔΟΣ's 日本 😀\nok'\n(no)…"
    # fmt: off
    assert bart.encode_batch([first, second]) == [
        [0, 170, 581, 1437, 192, 39300, 26059, 50118, 50118, 1092, 3079, 50264, 328, 2],
        [0, 243, 18, 4236, 7487, 46770, 6, 43662, 4333, 41335, 10674, 41335, 4333, 41335, 2469, 18, 47416, 6800, 8210,
         44636, 11582, 17841, 7471, 50118, 1638, 108, 50118, 1640, 2362, 43, 1174, 2],
    ]
    assert blenderbot.encode_batch([second]) == [
        [452, 341, 228, 136, 116, 300, 295, 73, 461, 19, 228, 146, 261, 146, 250, 146, 261, 146, 104, 341, 228, 170,
         253, 106, 170, 258, 113, 3417, 230, 206, 2477, 14, 206, 15, 1940, 16, 473, 107, 2],
    ]
    assert blenderbot_small.encode_batch([first, second]) == [
        [47, 8, 97, 114, 1115, 12723, 117, 12679, 4, 2388, 735, 2738, 3, 382, 1355, 1360, 37],
        [19, 8, 17, 318, 3, 29240, 6, 5717, 23032, 5717, 14614, 8, 17, 29933, 31622, 3, 4, 748, 8, 3, 54, 3, 1244],
    ]
    # fmt: on
