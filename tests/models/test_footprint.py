"""What is computed from a configuration is what a loaded model has."""

import pytest
import torch

from batchloom.models.checkpoints.loading import empty_model
from batchloom.models.device import bytes_per_token
from batchloom.models.families.reading import read_config
from batchloom.models.families.table import FAMILIES, architectures
from batchloom.models.footprint import Footprint
from batchloom.models.machines import Machine
from batchloom.models.ranks.group import TensorParallel

BART = {
    "vocab_size": 83,  # odd: the last rank holds fewer rows
    "d_model": 24,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
BLOOM = {"vocab_size": 83, "hidden_size": 24, "n_layer": 2, "n_head": 4, "num_labels": 3}
BLOOM_176B = {"model_type": "bloom", "vocab_size": 250880, "hidden_size": 14336, "n_layer": 70, "n_head": 112}


def config_of(architecture, **changes):
    family = next(family for family in FAMILIES.values() if architecture in family.architectures)
    sizes = BLOOM if family.prefix == "Bloom" else BART
    return read_config({"model_type": family.model_type, **sizes, **changes}, "the test")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("architecture", architectures())
def test_bytes_and_cache_are_those_of_the_model(architecture, size, tied):
    config = config_of(architecture, tie_word_embeddings=tied)
    model = empty_model(architecture, config, TensorParallel(size=size), torch.device("cpu"), torch.bfloat16)
    footprint = Footprint(config=config, architecture=architecture, num_ranks=size, dtype="bfloat16")
    assert footprint.weight_bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert footprint.cached_token_bytes == bytes_per_token(model)


def test_a_step_reads_what_the_decoder_holds():
    """Of an encoder-decoder, not what made the source's keys and values; of tied matrices, one."""
    config = config_of("BartForConditionalGeneration")
    footprint = Footprint(config=config, architecture="BartForConditionalGeneration")
    model = empty_model(
        "BartForConditionalGeneration", config, TensorParallel(), torch.device("cpu"), torch.float32
    ).model
    num_read = sum(parameter.numel() for parameter in model.decoder.layers.parameters())
    num_read -= sum(p.numel() for layer in model.decoder.layers for p in layer.encoder_attn.k_proj.parameters())
    num_read -= sum(p.numel() for layer in model.decoder.layers for p in layer.encoder_attn.v_proj.parameters())
    num_read += model.decoder.embed_tokens.weight.numel()
    slow_memory = Machine(bandwidth=1.0)
    assert footprint.step_seconds(slow_memory, rows=0, tokens=0) == num_read * 4
    a_row = footprint.step_seconds(slow_memory, rows=1, tokens=10) - num_read * 4
    assert a_row == pytest.approx(10 * footprint.cached_token_bytes)


def test_many_rows_are_bound_by_operations():
    config = config_of("BloomForCausalLM")
    footprint = Footprint(config=config, architecture="BloomForCausalLM")
    slow_processor = Machine(float_flops=1.0)
    one, four = (footprint.step_seconds(slow_processor, rows, tokens=10) for rows in (1, 4))
    assert four == pytest.approx(4 * one)


def test_weights_that_do_not_fit_leave_no_room():
    footprint = Footprint(
        config=read_config(BLOOM_176B, "the test"), architecture="BloomForCausalLM", num_ranks=4, dtype="bfloat16"
    )
    assert footprint.cached_tokens(Machine()) == 0
    assert footprint.cached_tokens(Machine(memory=141e9)) > 0
