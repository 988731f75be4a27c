import dataclasses
import json

import pytest
from tokenizers import Tokenizer as LibraryBackend
from tokenizers import decoders
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BartTokenizer, BlenderbotTokenizer, PreTrainedTokenizerFast

from batchloom import models
from batchloom.models import load_tokenizer
from batchloom.models.errors import TokenizerError
from batchloom.models.families.table import BART, BLENDERBOT, BLENDERBOT_SMALL, BLOOM, MBART
from batchloom.models.tokenizers.settings import read_settings, recognise_family


@pytest.fixture
def saved(tmp_path, bart_folder):
    """BART as the hub has it since transformers 2: tokenizer.json with the small files beside it."""
    folder = tmp_path / "saved"
    BartTokenizer.from_pretrained(bart_folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("tokenizer_config", "config", "family"),
    [
        ({"tokenizer_class": "BartTokenizerFast"}, {"model_type": "bloom"}, BART),
        ({"tokenizer_class": "RobertaTokenizer"}, {}, BART),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, {"model_type": "bloom"}, BLOOM),
        ({}, {"tokenizer_class": "BlenderbotSmallTokenizer", "model_type": "blenderbot"}, BLENDERBOT_SMALL),
        ({}, {"model_type": "blenderbot-small"}, BLENDERBOT_SMALL),
        ({}, {"model_type": "blenderbot"}, BLENDERBOT),
        ({"tokenizer_class": "MBartTokenizerFast"}, {}, MBART),
        ({"tokenizer_class": "MBart50Tokenizer"}, {}, MBART),
        ({"tokenizer_class": "TokenizersBackend"}, {"model_type": "mbart"}, MBART),
        ({}, {"model_type": "t5"}, None),
        ({}, {}, None),
    ],
)
def test_the_family_is_named_by_tokenizer_config_before_config(tmp_path, tokenizer_config, config, family):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_settings(tmp_path).family is family


def test_a_vocabulary_without_configuration_is_recognised_by_its_first_tokens():
    assert recognise_family({"<s>": 0, "<pad>": 1, "</s>": 2}) is BART
    assert recognise_family({"<pad>": 0, "<s>": 1, "</s>": 2}) is BLENDERBOT
    assert recognise_family({"<unk>": 0, "<s>": 1, "</s>": 2}) is BLOOM
    assert recognise_family({"__null__": 0, "__unk__": 3}) is BLENDERBOT_SMALL


def test_the_name_is_the_last_part_of_the_uri(bart_folder):
    assert load_tokenizer(f"{bart_folder}/").name == bart_folder.name


def test_a_uri_that_is_no_folder_goes_to_the_hub(bart_folder, monkeypatch, sentences):
    hub = pytest.importorskip("batchloom.models.checkpoints.hub")
    fetched = dataclasses.replace(hub.open_source(str(bart_folder)), uri="hf://a/b@c")
    monkeypatch.setattr(hub, "open_source", lambda uri: {"hf://a/b@c": fetched}[uri])
    tokenizer = models.load_tokenizer("hf://a/b@c")
    assert tokenizer.name == "b@c"
    assert tokenizer.encode_batch(sentences) == load_tokenizer(bart_folder).encode_batch(sentences)


def test_tokenizer_json_and_vocabulary_give_the_same(saved, bart_folder, sentences):
    ours = load_tokenizer(saved)
    assert (saved / "tokenizer.json").exists()
    assert ours.encode_offsets(sentences) == load_tokenizer(bart_folder).encode_offsets(sentences)


@pytest.mark.parametrize("prefix_space", [True, False])
def test_add_prefix_space_of_tokenizer_config_counts_over_tokenizer_json(saved, copy_of, prefix_space):
    config = json.loads((saved / "tokenizer_config.json").read_text())
    folder = copy_of(saved, tokenizer_config={**config, "add_prefix_space": prefix_space})
    reference = BartTokenizer.from_pretrained(folder)
    texts = ["Hello", " Hello", "", "Hello<mask>Hello", "\nHello"]
    expected = reference(texts, return_offsets_mapping=True)
    ours = load_tokenizer(folder)
    assert ours.encode_batch(texts) == expected["input_ids"]
    assert [list(map(tuple, e.offsets.tolist())) for e in ours.encode_offsets(texts)] == expected["offset_mapping"]


def test_add_prefix_space_reaches_blooms_sequence_of_splits(copy_of, bloom_folder):
    folder = copy_of(bloom_folder, tokenizer_config={"tokenizer_class": "BloomTokenizer", "add_prefix_space": True})
    plain, spaced = load_tokenizer(bloom_folder), load_tokenizer(folder)
    assert spaced.encode_batch(["Hello"]) == plain.encode_batch([" Hello"]) != plain.encode_batch(["Hello"])


def test_blenderbots_end_token_is_put_back_where_transformers_saved_without_it(tmp_path, blenderbot_folder, sentences):
    """transformers 5 builds the tokenizer without its template, and its saved tokenizer.json has none either."""
    BlenderbotTokenizer.from_pretrained(blenderbot_folder, mask_token=None).save_pretrained(tmp_path / "saved")
    ours = load_tokenizer(tmp_path / "saved")
    assert ours.encode_batch(sentences) == load_tokenizer(blenderbot_folder).encode_batch(sentences)
    assert (ours.num_special_tokens(), ours.num_special_tokens(pair=True)) == (1, 1)


def test_a_template_that_gives_blenderbots_pairs_no_end_token_is_completed(tmp_path, blenderbot_folder):
    """The hub's tokenizer.json has a form for one text only."""
    from tokenizers.processors import TemplateProcessing

    backend = load_tokenizer(blenderbot_folder)._backend
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode_batch([""], [""]) == [[2]]


def test_added_tokens_keep_their_ids(copy_of, bart_folder, sentences):
    size = load_tokenizer(bart_folder).vocab_size
    added = {"<topic>": size + 1, "<summary>": size}
    folder = copy_of(
        bart_folder,
        added_tokens=added,
        special_tokens_map={"additional_special_tokens": ["<topic>"], "mask_token": "<mask>"},
    )
    ours = load_tokenizer(folder)
    text = f"<topic> {sentences[0]}<summary>end"
    (ids,) = ours.encode_batch([text])
    assert (ids[1], size in ids, ours.vocab_size) == (size + 1, True, size + 2)
    assert ours.decode_batch([ids]) == [f" {sentences[0]}<summary>end"]  # the special one is skipped


def test_an_added_token_whose_id_leaves_a_hole_is_refused(copy_of, bart_folder):
    size = load_tokenizer(bart_folder).vocab_size
    folder = copy_of(bart_folder, added_tokens={"<topic>": size + 5})
    with pytest.raises(TokenizerError, match=f"'<topic>' has id {size + 5} in its file.*{size}"):
        load_tokenizer(folder)


def test_added_tokens_decoder_of_tokenizer_config_counts_alone(copy_of, bart_folder):
    size = load_tokenizer(bart_folder).vocab_size
    config = {
        "tokenizer_class": "BartTokenizer",
        "added_tokens_decoder": {str(size): {"content": "<new>", "special": True, "lstrip": True}},
    }
    folder = copy_of(bart_folder, tokenizer_config=config, added_tokens={"<old>": size})
    ours = load_tokenizer(folder)
    assert ours.encode_batch(["<old>"], add_special_tokens=False)[0] != [size]
    (plain,) = ours.encode_batch(["a"], add_special_tokens=False)
    assert ours.encode_batch(["a  <new>"], add_special_tokens=False) == [[*plain, size]]


def test_a_special_token_without_an_id_is_left_out(copy_of, blenderbot_folder):
    """transformers makes up id 8008 for Blenderbot's <mask>, which the embedding of 8008 rows does not have."""
    plain = load_tokenizer(blenderbot_folder)
    folder = copy_of(blenderbot_folder, special_tokens_map={"mask_token": "<mask>", "eos_token": "</s>"})
    ours = load_tokenizer(folder)
    assert (ours.vocab_size, ours.mask_token_id) == (plain.vocab_size, None)
    assert ours.encode_batch(["a <mask>"]) == plain.encode_batch(["a <mask>"])


def test_roles_are_those_of_the_files_and_null_is_none(copy_of, bloom_folder):
    config = {"tokenizer_class": "BloomTokenizerFast", "pad_token": None, "bos_token": "</s>"}
    folder = copy_of(bloom_folder, tokenizer_config=config, special_tokens_map={"eos_token": {"content": "<s>"}})
    ours = load_tokenizer(folder)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, ours.unk_token_id) == (2, 1, None, 0)


def test_a_role_in_the_vocabulary_is_special_even_if_tokenizer_json_does_not_say(copy_of, bloom_folder):
    stored = json.loads((bloom_folder / "tokenizer.json").read_text())
    stored["added_tokens"] = []
    ours = load_tokenizer(copy_of(bloom_folder, tokenizer=stored))
    assert ours.encode_batch(["a</s>"])[0][-1] == 2
    assert ours.decode_batch([[2, 1]]) == [""]


def test_any_tokenizer_of_the_library_runs_and_is_cleaned_up_where_the_file_says_so(tmp_path):
    """BART of other languages comes with WordPiece or Unigram: tokenizer.json is taken as it stands."""
    vocabulary = {token: index for index, token in enumerate(["[UNK]", "[PAD]", "hello", ",", "world", "##s"])}
    backend = LibraryBackend(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    roles = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    for clean_up in (True, False):
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": clean_up, **roles}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        ours, reference = load_tokenizer(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
        ids = ours.encode_batch(["hello, worlds"])
        assert ids == [[2, 3, 4, 5]]
        assert ours.decode_batch(ids) == [reference.decode(ids[0])]
        assert (ours.unk_token_id, ours.pad_token_id, ours.eos_token_id) == (0, 1, None)


def test_missing_files_are_named(tmp_path, copy_of, bart_folder):
    with pytest.raises(TokenizerError, match=r"tokenizer.json and vocab.json and merges.txt are missing"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match=r"tokenizer.json and vocab.json are missing"):
        load_tokenizer(copy_of(bart_folder, vocab=None))


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_file_that_is_no_object_is_named(copy_of, bart_folder, content):
    folder = copy_of(bart_folder)
    (folder / "vocab.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"vocab.json"):
        load_tokenizer(folder)


def test_a_tokenizer_json_that_the_library_cannot_read_is_refused(copy_of, bloom_folder):
    folder = copy_of(bloom_folder, tokenizer={"model": {"type": "Magic"}})
    with pytest.raises(TokenizerError, match=r"tokenizer.json is not readable"):
        load_tokenizer(folder)
