"""Tiny random checkpoints whose generations are worth comparing: near ties are rare, end tokens come now and then."""

import pytest
import torch
import transformers

from batchloom.models import load_model

BART_LIKE = {
    "vocab_size": 211,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 96,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "tie_word_embeddings": False,
}
BLOOM = {
    "vocab_size": 211,
    "hidden_size": 32,
    "n_layer": 2,
    "n_head": 4,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
# Tokens and positions louder than the source and the mean of the feed-forward, which are the same at every step.
STANDARD_DEVIATIONS = {"positions": 1.0, "shared": 1.0, "embed_tokens": 1.0, "encoder_attn.out_proj": 0.15, "fc2": 0.15}
FAMILIES = {
    "bart": (transformers.BartConfig, transformers.BartForConditionalGeneration, BART_LIKE),
    "mbart": (transformers.MBartConfig, transformers.MBartForConditionalGeneration, BART_LIKE),
    "blenderbot": (transformers.BlenderbotConfig, transformers.BlenderbotForConditionalGeneration, BART_LIKE),
    "blenderbot_small": (
        transformers.BlenderbotSmallConfig,
        transformers.BlenderbotSmallForConditionalGeneration,
        BART_LIKE,
    ),
    "bloom": (transformers.BloomConfig, transformers.BloomForCausalLM, BLOOM),
    "bart_causal": (transformers.BartConfig, transformers.BartForCausalLM, {**BART_LIKE, "is_encoder_decoder": False}),
}


def make_checkpoint(folder, family, seed=0, **changes):
    """The reference's model, saved for ours to read.

    Weights are large and the head is its own, or every answer would be one token repeated and processors idle.
    """
    config_class, model_class, settings = FAMILIES[family]
    settings = {**settings, **changes}
    torch.manual_seed(seed)
    model = model_class(config_class(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, next((std for part, std in STANDARD_DEVIATIONS.items() if part in name), 0.4))
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_(0.0, 0.5)
            model.final_logits_bias[0, 2] = 2.0
    model.generation_config = transformers.GenerationConfig(
        **{name: settings[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in settings},
        **({"decoder_start_token_id": 2} if family not in ("bloom", "bart_causal") else {}),
    )
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """pair(family) -> (the reference's model, ours), made once; a smaller vocabulary lets options act more often."""
    made = {}

    def get(family, vocab_size=211):
        key = (family, vocab_size)
        if key not in made:
            folder = tmp_path_factory.mktemp(family)
            reference = make_checkpoint(folder, family, vocab_size=vocab_size)
            made[key] = (reference, load_model(str(folder), dtype="float32", device="cpu"))
        return made[key]

    return get


ROWS: list[tuple[str, str, float]] = []


@pytest.fixture
def table():
    """Appends (options, family, largest difference of a score) to the printed table."""
    return ROWS


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    families = sorted({family for _, family, _ in ROWS})
    terminalreporter.section("tokens equal to transformers' generate, float32: largest difference of a score")
    terminalreporter.write_line(" ".join(f"{family:>16s}" for family in families) + "  options")
    for options in dict.fromkeys(row[0] for row in ROWS):
        found = {family: difference for name, family, difference in ROWS if name == options}
        cells = [f"{found[family]:16.1e}" if family in found else f"{'-':>16s}" for family in families]
        terminalreporter.write_line(" ".join(cells) + f"  {options or 'the defaults'}")
