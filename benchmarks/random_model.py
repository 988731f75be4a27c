"""Models with random weights, made where they are used: real sizes without a checkpoint. They know no task."""

import torch

from batchloom.models.checkpoints.loading import empty_model
from batchloom.models.checkpoints.memory import lay_out
from batchloom.models.families.base import LoadedModel
from batchloom.models.families.reading import read_config
from batchloom.models.ranks.group import SINGLE

BART, BLOOM = "BartForConditionalGeneration", "BloomForCausalLM"
_TINY = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
_TINY |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 512}
# By name: the architecture, and config.json as far as it is not the family's default, which for BART is bart-large.
SIZES = {
    "bart-large": (BART, {}),
    "bloom-560m": (BLOOM, {"hidden_size": 1024, "n_layer": 24, "n_head": 16}),
    "bloom-7b1": (BLOOM, {"hidden_size": 4096, "n_layer": 30, "n_head": 32}),
    "tiny-bart": (BART, {"d_model": 32, "vocab_size": 211, "tie_word_embeddings": False, **_TINY}),
    "tiny-bloom": (BLOOM, {"hidden_size": 32, "n_head": 4, "vocab_size": 211, "tie_word_embeddings": False}),
}


def raw_config(name: str) -> dict[str, object]:
    """A size's config.json."""
    architecture, settings = SIZES[name]
    return {"model_type": "bart" if architecture == BART else "bloom", "architectures": [architecture], **settings}


def random_model(name: str, device: torch.device, dtype: torch.dtype, deviation: float = 0.02) -> LoadedModel:
    """A model of SIZES. Tiny ones want a deviation of 0.4, or they say one token again and again."""
    torch.manual_seed(0)
    model = empty_model(SIZES[name][0], read_config(raw_config(name), where=name), SINGLE, device, dtype)
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, deviation)
        else:
            parameter.fill_(0.0 if parameter_name.endswith("bias") else 1.0)
    lay_out(model)
    model.generation_defaults = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "decoder_start_token_id": 2}
    return model
