"""The tensors that a family's files have, by name, and which of a file's are none of them. It knows no torch."""

from collections.abc import Collection, Iterator

from batchloom.models.families.config import EncoderDecoderConfig, ModelConfig, StackSize
from batchloom.models.families.sizes import canonical
from batchloom.models.families.table import family_of

ACTIVATIONS = {"prelu": ("weight",), "xielu": ("alpha_p", "alpha_n")}
"""The parameters of activations that have some, by their names in config.json."""
# Buffers that old versions of transformers saved, and what stands beside quantized weights. They decide nothing.
BOOKKEEPING = (".version", "._float_tensor", ".masked_bias", ".attn.bias", ".causal_mask", ".position_ids")
BOOKKEEPING_OF_ACTIVATIONS = (".activation_fn.beta", ".activation_fn.eps")
SCALE, LAYOUT = "SCB", "weight_format"
SHOWN = 8


def unread(config: ModelConfig, names: Collection[str]) -> list[str]:
    """Return which of a file's tensors no class of the family reads: adapters, more layers, other norms.

    Those that another class than the loaded one reads (a head, an encoder) are none of them.
    """
    known = set(known_names(config))
    quantized = {canonical(name).removesuffix(SCALE) for name in names if name.endswith(f".{SCALE}")}
    ours = known | {f"{owner}{leaf}" for owner in quantized for leaf in (SCALE, LAYOUT) if f"{owner}weight" in known}
    harmless = BOOKKEEPING + BOOKKEEPING_OF_ACTIVATIONS
    return sorted(name for name in names if canonical(name) not in ours and not f".{name}".endswith(harmless))


def words_for_unread(names: Collection[str]) -> str:
    """Return what a user should know of tensors that are not read."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    adapters = any("lora_" in name for name in names)
    advice = (
        "Merge the adapter into the weights before (PEFT's merge_and_unload)."
        if adapters
        else "See that config.json describes these weights."
    )
    found = f"{len(names):,} tensors of the files are" if len(names) > 1 else "1 tensor of the files is"
    return (
        f"{found} read by no class of this family, so that answers may not be those of the model that was saved: "
        f"{', '.join(sorted(names)[:SHOWN])}{more}. {advice}"
    )


def known_names(config: ModelConfig) -> Iterator[str]:
    """Yield the names, without prefix, of all tensors that some class of the family reads, or holds as a tied copy."""
    if isinstance(config, EncoderDecoderConfig):
        yield from (*config.EMBEDDINGS, "final_logits_bias", "lm_head.weight")
        yield from _pairs("classification_head.dense", "classification_head.out_proj", "qa_outputs")
        yield from _stack(config, "encoder", config.encoder, ("self_attn",))
        yield from _stack(config, "decoder", config.decoder, ("self_attn", "encoder_attn"))
        return
    yield from (*config.EMBEDDINGS, "lm_head.weight", "score.weight")
    yield from _pairs("word_embeddings_layernorm", "ln_f", "classifier", "qa_outputs")
    for number in range(config.decoder.num_layers):
        parts = ("input_layernorm", "post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
        attention = ("self_attention.query_key_value", "self_attention.dense")
        yield from _pairs(*(f"{config.decoder.layers}.{number}.{part}" for part in (*parts, *attention)))


def _stack(config: EncoderDecoderConfig, name: str, size: StackSize, attentions: Collection[str]) -> Iterator[str]:
    family = family_of(config)
    yield f"{name}.embed_positions.weight"
    yield from _pairs(*([f"{name}.layernorm_embedding"] if family.embedding_norm else []))
    yield from _pairs(*([f"{name}.layer_norm"] if family.final_norm else []))
    for number in range(size.num_layers):
        layer = f"{size.layers}.{number}"
        yield from _pairs(*(f"{layer}.{part}" for part in ("fc1", "fc2", "final_layer_norm")))
        for attention in attentions:
            parts = [f"{attention}.{part}_proj" for part in ("q", "k", "v", "out")]
            yield from _pairs(*(f"{layer}.{part}" for part in (*parts, f"{attention}_layer_norm")))
        yield from (f"{layer}.activation_fn.{leaf}" for leaf in ACTIVATIONS.get(config.activation_function, ()))


def _pairs(*modules: str) -> Iterator[str]:
    """Yield the weight and the bias of modules."""
    return (f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias"))
