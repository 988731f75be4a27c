"""Weights and what config.json says of them: labels counted, tensors that nothing reads, classes, quantized ones."""

import json
import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from batchloom.models import describe, load_model, stream_model
from batchloom.models.errors import CheckpointError, UnsupportedModelError

BART = {
    "vocab_size": 53, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 20,
}  # fmt: skip
BLOOM = {"vocab_size": 53, "hidden_size": 16, "n_layer": 2, "n_head": 2}
IDS = torch.tensor([[0, 7, 9, 44, 2]])


@pytest.fixture
def make(tmp_path):
    """make("BartModel", **config) -> the reference's model, and its folder."""

    def save(architecture, **config):
        family = architecture.partition("For")[0].removesuffix("Model")
        torch.manual_seed(0)
        settings = (BLOOM if family == "Bloom" else BART) | config
        made = getattr(transformers, architecture)(getattr(transformers, f"{family}Config")(**settings)).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_(0, 0.2)
        made.save_pretrained(tmp_path)
        return made, tmp_path

    return save


def change(folder, edit=None, config=None):
    """Edit the tensors of a folder's file, and values of its config.json (None takes one out)."""
    path = folder / "model.safetensors"
    if edit is not None:
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
    raw = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def as_bin(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


# Labels


@pytest.mark.parametrize("file", ["safetensors", "bin"])
@pytest.mark.parametrize("num_labels", [2, 5])
@pytest.mark.parametrize(
    "architecture", ["BartForSequenceClassification", "BloomForSequenceClassification", "BloomForTokenClassification"]
)
def test_labels_are_counted_where_config_json_names_none(make, architecture, num_labels, file):
    """transformers 5 writes no id2label for two labels, and our default for BART is three."""
    reference, folder = make(architecture, num_labels=num_labels)
    change(folder, config={"id2label": None, "label2id": None})
    if file == "bin":
        as_bin(folder)
    found = describe(str(folder))
    assert found.config.num_labels == num_labels
    default = 3 if architecture.startswith("Bart") else 2
    says = [note for note in found.notes if f"names no labels; the weights have {num_labels}: LABEL_0" in note]
    assert len(says) == (num_labels != default)
    with torch.no_grad():
        expected = reference(IDS).logits
    for model in (load_model(str(folder)), load_model(found.pinned), stream_model(found.pinned)):
        torch.testing.assert_close(model(IDS), expected, atol=2e-6, rtol=0)


def test_what_is_planned_is_what_is_loaded_where_shapes_are_known_to_torch_alone(make):
    """A .bin from before torch 1.6: three labels are planned, so loading may not count two."""
    _, folder = make("BartForSequenceClassification", num_labels=2)
    change(folder, config={"id2label": None, "label2id": None})
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    found = describe(str(folder))
    assert found.config.num_labels == 3
    with pytest.raises(CheckpointError, match="num_labels"):
        load_model(found.pinned)
    told = describe(str(folder), changes={"num_labels": 2})
    assert load_model(told.pinned)(IDS).shape == (1, 2)


def test_layers_that_are_missing_are_found_by_loading_where_shapes_are_known_to_torch_alone(make):
    """Unknown shapes were taken for no tensors: a plan for a .bin from before torch 1.6 missed all its layers."""
    _, folder = make("BartForSequenceClassification", num_labels=2)
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    assert describe(str(folder)).pinned.file("pytorch_model.bin")
    change(folder, config={"decoder_layers": 3})
    found = describe(str(folder))
    with pytest.raises(CheckpointError, match=r"decoder.layers should be 3 layers; the files have 2"):
        load_model(found.pinned)


class Code:
    def __reduce__(self):
        return print, ("this ran",)


def test_code_in_a_bin_file_is_not_run_where_its_shapes_are_read(make, capsys):
    _, folder = make("BartForSequenceClassification", num_labels=2)
    tensors = load_file(folder / "model.safetensors")
    torch.save({**tensors, "more": Code()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert describe(str(folder)).architecture == "BartForSequenceClassification"
    with pytest.raises(CheckpointError, match="it carries code"):
        load_model(str(folder))
    assert "this ran" not in capsys.readouterr().out


def test_a_number_of_labels_that_is_not_the_heads_is_refused_with_what_to_set(make):
    _, folder = make("BartForSequenceClassification", num_labels=5)
    with pytest.raises(CheckpointError, match=r"should have 4 rows.*model_options: \{num_labels: 5\}"):
        describe(str(folder), changes={"num_labels": 4})


def test_names_of_labels_stand_over_those_of_config_json(make):
    _, folder = make("BartForSequenceClassification", num_labels=2)
    names = {"0": "no", "1": "yes"}
    found = describe(str(folder), changes={"id2label": names, "label2id": None, "num_labels": 2})
    assert found.config.id2label == {0: "no", 1: "yes"}
    assert load_model(found.pinned).config.id2label == {0: "no", 1: "yes"}


def test_a_class_of_another_family_is_refused(make):
    _, folder = make("BartModel")
    with pytest.raises(UnsupportedModelError, match="'BloomForCausalLM' is not one that a bart checkpoint"):
        describe(str(folder), changes={"architectures": ["BloomForCausalLM"]})


# Tensors that nothing reads


def strays(tensors):
    tensors["model.encoder.layers.2.fc1.weight"] = torch.zeros(24, 16)
    tensors["model.decoder.layer_norm.weight"] = torch.ones(16)


@pytest.mark.parametrize("file", ["safetensors", "bin"])
def test_tensors_that_nothing_reads_are_named_and_refused_where_that_is_asked(make, caplog, file):
    _, folder = make("BartForConditionalGeneration")
    change(folder, strays)
    if file == "bin":
        as_bin(folder)
    (note,) = describe(str(folder)).notes
    assert "2 tensors" in note
    assert "model.decoder.layer_norm.weight, model.encoder.layers.2.fc1.weight" in note
    with caplog.at_level(logging.WARNING):
        load_model(str(folder))
    assert note in caplog.text
    with pytest.raises(CheckpointError, match=r"model_options.strict is true: 2 tensors"):
        describe(str(folder), strict=True)


@pytest.mark.parametrize(
    ("architecture", "loaded"),
    [
        ("BartForConditionalGeneration", "BartForCausalLM"),
        ("BartForSequenceClassification", "BartModel"),
        ("BloomForCausalLM", "BloomModel"),
        ("BlenderbotForConditionalGeneration", "BlenderbotForCausalLM"),
    ],
)
def test_heads_encoders_and_tied_copies_are_no_strays(make, caplog, architecture, loaded):
    _, folder = make(architecture)
    assert describe(str(folder), strict=True).notes == ()
    with caplog.at_level(logging.WARNING):
        load_model(str(folder), loaded)
    assert "tensors" not in caplog.text


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod."])
def test_what_torch_compile_puts_before_names_is_taken_off(make, prefix):
    reference, folder = make("BartForConditionalGeneration")

    def wrap(tensors):
        for name in list(tensors):
            inner = name.replace("encoder.layers", "encoder._orig_mod.layers")
            tensors[f"{prefix}{inner}"] = tensors.pop(name)

    change(folder, wrap)
    assert describe(str(folder), strict=True).notes == ()
    with torch.no_grad():
        expected = reference(IDS).logits
    torch.testing.assert_close(load_model(str(folder))(IDS), expected, atol=2e-6, rtol=0)


# Quantized


def quantized(weight):
    """As bitsandbytes stores it: rows of integers, the largest magnitude of each at 127."""
    scale = weight.abs().amax(1)
    return (weight / scale[:, None] * 127).round().to(torch.int8), scale


def as_int8(tensors, layout=0):
    for name in [
        name for name in tensors if name.endswith(("dense.weight", "_4h.weight", "_to_h.weight", "value.weight"))
    ]:
        owner = name.removesuffix("weight")
        tensors[name], tensors[f"{owner}SCB"] = quantized(tensors[name])
        tensors[f"{owner}weight_format"] = torch.tensor(layout, dtype=torch.uint8)


INT8 = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}}


def test_int8_weights_of_bitsandbytes_are_read(make):
    reference, folder = make("BloomForCausalLM")
    change(folder, as_int8, INT8)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith(("dense.weight", "_4h.weight", "_to_h.weight", "value.weight")):
                integers, scale = quantized(parameter)
                parameter.copy_(integers.float() * scale[:, None] / 127)
        expected = reference(IDS).logits
    assert describe(str(folder), strict=True).notes == ()
    for model in (load_model(str(folder)), stream_model(str(folder))):
        torch.testing.assert_close(model(IDS), expected, atol=5e-6, rtol=0)


def test_the_layout_of_one_gpu_is_refused(make):
    _, folder = make("BloomForCausalLM")
    change(folder, lambda tensors: as_int8(tensors, layout=2), INT8)
    with pytest.raises(CheckpointError, match="int8 layout of one kind of GPU"):
        load_model(str(folder))


def test_integers_without_scales_are_refused_by_name(make):
    _, folder = make("BloomForCausalLM")

    def edit(tensors):
        as_int8(tensors)
        for name in [name for name in tensors if name.endswith("SCB")]:
            del tensors[name]

    change(folder, edit)
    with pytest.raises(CheckpointError, match=r"dense.weight is stored as torch.int8, without the scales"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ({"quant_method": "awq", "bits": 4}, "AWQ"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes with 4 bits"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_quantized_weights_are_refused_by_the_name_of_their_method(make, found, name):
    _, folder = make("BloomForCausalLM")
    change(folder, config={"quantization_config": found})
    for ask in (describe, load_model):
        with pytest.raises(UnsupportedModelError, match=f"quantized by {name}, which is not read. Use the checkpoint"):
            ask(str(folder))


def test_gguf_is_refused_with_what_to_do(make):
    _, folder = make("BloomForCausalLM")
    (folder / "model.safetensors").rename(folder / "bloom-q4.gguf")
    with pytest.raises(CheckpointError, match=r"GGUF is not read: .*gguf_file"):
        describe(str(folder))


def test_a_switch_that_leaves_biases_out_is_refused(make):
    _, folder = make("BloomForCausalLM")
    change(folder, config={"slow_but_exact": True, "pretraining_tp": 4})
    with pytest.raises(CheckpointError, match="slow_but_exact = true with pretraining_tp = 4"):
        describe(str(folder))
    change(folder, config={"slow_but_exact": True, "pretraining_tp": 1})
    assert describe(str(folder)).architecture == "BloomForCausalLM"
