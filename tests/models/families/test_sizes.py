"""config.json against the shapes in the weight files: what cannot work is refused by describe, in seconds."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM

from batchloom.models import describe, load_model, stream_model
from batchloom.models.errors import CheckpointError


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")


@pytest.fixture(scope="module")
def bloom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bloom")
    BloomForCausalLM(BloomConfig(vocab_size=67, hidden_size=16, n_layer=2, n_head=2)).save_pretrained(folder)
    return folder


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder_layers": 10**9},
            r"encoder\.layers\.2\.fc1\.weight is missing.* 1000000000 layers; the files have 2",
        ),
        ({"decoder_layers": 3}, r"decoder\.layers\.2\.fc1\.weight is missing.* 3 layers; the files have 2"),
        ({"vocab_size": 10**12}, r"shared\.weight should be \[1000000000000, 32\]; the file has \[\d+, 32\]"),
        ({"d_model": 10**9}, r"shared\.weight should be \[\d+, 1000000000\]; the file has \[\d+, 32\]"),
        ({"encoder_ffn_dim": 65}, r"encoder\.layers\.0\.fc1\.weight should be \[65, 32\]; the file has \[64, 32\]"),
        (
            {"max_position_embeddings": 10**12},
            r"decoder\.embed_positions\.weight should be \[1000000000002, 32\]; the file has \[130, 32\]",
        ),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_named(folder, change, message):
    """`encoder_layers: 1e9` and a vocabulary of 1e12 ended after minutes, out of memory."""
    uri = configure(folder, **change)
    began = time.monotonic()
    for door in (describe, load_model, stream_model):
        with pytest.raises(CheckpointError, match=message if door is describe else "do not fit|should be"):
            door(uri)
    assert time.monotonic() - began < 10


def test_all_sizes_that_do_not_fit_come_in_one_error(folder):
    with pytest.raises(CheckpointError) as caught:
        describe(configure(folder, vocab_size=7, decoder_layers=9, encoder_ffn_dim=3))
    assert str(caught.value).count("\n  - ") == 3


def test_layers_of_bloom_are_counted_too(bloom, tmp_path):
    copy = shutil.copytree(bloom, tmp_path / "copy")
    describe(str(copy))
    with pytest.raises(
        CheckpointError, match=r"h\.2\.mlp\.dense_h_to_4h\.weight is missing: h should be 1000000 layers"
    ):
        describe(configure(copy, n_layer=10**6))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bin_file_that_has_fewer_layers_is_refused_before_the_model_is_built(folder, zipped):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    load_model(str(folder))
    with pytest.raises(CheckpointError, match=r"encoder\.layers should be 1000000000 layers; the files have 2"):
        load_model(configure(folder, encoder_layers=10**9))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-10], r"tensor .* should end at byte \d+, the file at \d+"),
        (lambda content: content[:100], "its header should end at byte"),
        (lambda content: content[:5], "5 bytes long"),
        (lambda content: content[:0], "0 bytes long"),
        (
            lambda content: (10**15).to_bytes(8, "little") + content[8:],
            "its header should end at byte 1000000000000008",
        ),
        (lambda content: content[:8] + b"[" * 100 + content[108:], "its header is none"),
    ],
)
def test_a_damaged_safetensors_file_is_refused_by_describe(folder, damage, message):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    for door in (describe, load_model):
        with pytest.raises(CheckpointError, match=message):
            door(str(folder))


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' * 100_000,
        b'{"a":5}',
        b"[]",
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}',
        b'{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1]}}',
    ],
    ids=lambda header: header[:40].decode(),
)
def test_a_header_that_is_none_is_refused(folder, header):
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    for door in (describe, load_model):
        with pytest.raises(CheckpointError, match=r"its header is none|stored as \["):
            door(str(folder))


def test_a_bin_file_that_is_cut_is_refused_by_describe(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    content = (folder / "pytorch_model.bin").read_bytes()
    for kept in (0, len(content) // 2, len(content) - 30):
        (folder / "pytorch_model.bin").write_bytes(content[:kept])
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is cut short"):
            describe(str(folder))


def test_weights_that_fit_are_described(folder):
    save_file(load_file(folder / "model.safetensors") | {"stray": torch.ones(2)}, folder / "model.safetensors")
    assert describe(str(folder)).architecture == "BartForConditionalGeneration"
