"""The names of tensors that are known without torch are those that the classes read."""

import pytest

from batchloom.models.checkpoints.loading import meta_model
from batchloom.models.families.reading import read_config
from batchloom.models.families.sizes import canonical
from batchloom.models.families.table import FAMILIES, model_class
from batchloom.models.families.tensor_names import known_names, unread, words_for_unread
from batchloom.models.ranks.group import SINGLE

SIZES = {
    "d_model": 8, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 6, "decoder_ffn_dim": 4, "max_position_embeddings": 10, "vocab_size": 11,
}  # fmt: skip
BLOOM = {"hidden_size": 8, "n_layer": 2, "n_head": 2, "vocab_size": 11}


def config_of(family, **changes):
    return read_config({"model_type": family, **(BLOOM if family == "bloom" else SIZES), **changes}, "config.json")


@pytest.mark.parametrize("activation", ["gelu", "prelu", "xielu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_classes_of_a_family_together_read_the_names_that_are_known(family, activation):
    config = config_of(family, activation_function=activation, tie_word_embeddings=False)
    read = set()
    for architecture in FAMILIES[family].architectures:
        model = meta_model(architecture, config, SINGLE)
        read |= {canonical(name) for name, _ in model.named_parameters()} | set(model_class(architecture).TIED)
    known = set(known_names(config))
    assert read <= known
    heads = {"classification_head", "qa_outputs", "classifier", "score"}  # known of families whose classes have none
    assert {name for name in known - read if name.split(".")[0] not in heads} == set()


def test_what_no_class_reads_is_unread_under_any_prefix():
    config = config_of("bart")
    ours = list(known_names(config))
    strays = ["model.encoder.layer_norm.weight", "encoder.layers.2.fc1.weight", "model.decoder.layers.0.lora_A.weight"]
    old = ["encoder.version", "model._orig_mod.decoder.version"]
    named = [*(f"_orig_mod.model.{name}" for name in ours), *strays, *old]
    assert unread(config, named) == sorted(strays)
    assert "merge_and_unload" in words_for_unread(strays)


def test_scales_of_a_weight_are_known_and_others_are_not():
    config = config_of("bloom")
    layer = "transformer.h.0.mlp.dense_h_to_4h"
    named = [f"{layer}.weight", f"{layer}.SCB", f"{layer}.weight_format", "h.7.mlp.dense_h_to_4h.SCB"]
    assert unread(config, named) == ["h.7.mlp.dense_h_to_4h.SCB"]


def test_many_names_are_counted():
    words = words_for_unread([f"encoder.layers.{number}.fc1.weight" for number in range(12)])
    assert "12 tensors" in words
    assert "and 4 more" in words
