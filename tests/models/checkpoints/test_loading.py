"""load_model: what fits is loaded, what does not is named."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BartConfig, BartForConditionalGeneration

from batchloom.models import describe, load_model
from batchloom.models.errors import CheckpointError, DeviceError, UnsupportedModelError


@pytest.fixture(scope="session")
def bart_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bart")
    config = BartConfig(
        vocab_size=101,
        d_model=24,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=40,
        decoder_ffn_dim=36,
        max_position_embeddings=20,
    )
    torch.manual_seed(0)
    BartForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(bart_folder, tmp_path):
    return shutil.copytree(bart_folder, tmp_path / "copied")


def test_a_folder_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        load_model(str(tmp_path / "absent"))


def test_a_folder_without_config_is_no_checkpoint(copied):
    (copied / "config.json").unlink()
    for door in (load_model, describe):
        with pytest.raises(CheckpointError, match=r"no config\.json"):
            door(str(copied))


def test_a_folder_without_weights_is_said_so(copied):
    (copied / "model.safetensors").unlink()
    for door in (load_model, describe):
        with pytest.raises(CheckpointError, match="no weights"):
            door(str(copied))


def test_all_mismatches_come_in_one_error(copied):
    weights = load_file(copied / "model.safetensors")
    del weights["model.encoder.layers.0.fc1.bias"]
    weights["model.decoder.layers.1.fc2.weight"] = torch.zeros(24, 35)
    weights["model.shared.weight"] = torch.zeros(100, 24)
    save_file(weights, copied / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_model(str(copied))
    message = str(caught.value)
    assert "encoder.layers.0.fc1.bias [40] is missing" in message
    assert "decoder.layers.1.fc2.weight should be [24, 36]; the file has [24, 35]" in message
    assert "should be [101, 24]; the file has [100, 24]" in message


def test_a_truncated_file_is_said_so(copied):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_model(str(copied))


def test_unknown_architectures_and_families_are_refused(copied):
    with pytest.raises(UnsupportedModelError, match="BartForConditionalGeneration"):
        load_model(str(copied), architecture="BertModel")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    with pytest.raises(UnsupportedModelError, match="t5"):
        load_model(str(copied))


def test_dtypes_are_taken_by_name_and_auto_is_float32_on_a_cpu(bart_folder):
    assert load_model(str(bart_folder), device="cpu").dtype == torch.float32
    assert load_model(str(bart_folder), dtype="bfloat16", device="cpu").dtype == torch.bfloat16
    assert load_model(str(bart_folder), dtype="float16", device="cpu").dtype == torch.float16
    with pytest.raises(DeviceError, match="float8"):
        load_model(str(bart_folder), dtype="float8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device = 'gpu' is not a device. Use 'auto', 'cpu'"),
        ({"device": "mps"}, "device = 'mps' is not one that this runs on. Use 'auto', 'cpu'"),
        ({"device": "meta"}, "device = 'meta' is not one that this runs on"),
        ({"tensor_parallel": 0}, "tensor_parallel = 0 must be a whole number of at least 1"),
        ({"tensor_parallel": -2}, "tensor_parallel = -2 must be a whole number of at least 1"),
    ],
)
def test_devices_and_ranks_that_cannot_be_are_refused(bart_folder, options, message):
    with pytest.raises(DeviceError, match=re.escape(message)):
        load_model(str(bart_folder), **options)
