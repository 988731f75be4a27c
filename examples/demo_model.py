"""The demo's model: a folder of examples/demo_models/ where there is one, else a small BART with random weights.

The random one is made on the spot from a seed and the corpus: a whole checkpoint in hub format, but its summaries mean
nothing.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing
from tokenizers.trainers import BpeTrainer

TRAINED_MODELS = Path(__file__).parent / "demo_models"
SEED = 0
VOCABULARY = 2048
WIDTH, FEED_FORWARD, LAYERS, HEADS, POSITIONS = 64, 256, 2, 4, 1024
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def trained_model() -> Path | None:
    """The first trained checkpoint of examples/demo_models/, None where there is none."""
    return next((path.parent for path in sorted(TRAINED_MODELS.glob("*/config.json"))), None)


def random_model(texts: Iterable[str]) -> dict[str, bytes]:
    """The files of a checkpoint: a byte-level BPE learnt from `texts`, and a BART drawn from SEED."""
    tokenizer = _tokenizer(texts)
    config = {
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
        "vocab_size": tokenizer.get_vocab_size(),
        "d_model": WIDTH,
        "encoder_layers": LAYERS,
        "decoder_layers": LAYERS,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": FEED_FORWARD,
        "decoder_ffn_dim": FEED_FORWARD,
        "max_position_embeddings": POSITIONS,
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "torch_dtype": "float32",
    }
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    generation = special | {"forced_eos_token_id": 2, "num_beams": 2, "max_length": 32, "no_repeat_ngram_size": 3}
    return {
        "config.json": _json(config | special),
        "generation_config.json": _json(generation),
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "model.safetensors": save(dict(_weights(tokenizer.get_vocab_size())), metadata={"format": "pt"}),
    }


def _tokenizer(texts: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def _weights(vocabulary: int) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of BartForConditionalGeneration under its hub name."""
    random = np.random.default_rng(SEED)

    def normal(*shape: int) -> np.ndarray:
        # Wider than BART's 0.02: with that, a model this narrow says the same token whatever it reads.
        return (random.standard_normal(shape) * WIDTH**-0.5).astype(np.float32)

    def linear(name: str, num_out: int, num_in: int) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{name}.weight", normal(num_out, num_in)
        yield f"{name}.bias", np.zeros(num_out, np.float32)

    def norm(name: str) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{name}.weight", np.ones(WIDTH, np.float32)
        yield f"{name}.bias", np.zeros(WIDTH, np.float32)

    yield "model.shared.weight", normal(vocabulary, WIDTH)
    yield "final_logits_bias", np.zeros((1, vocabulary), np.float32)
    for stack, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        yield f"model.{stack}.embed_positions.weight", normal(POSITIONS + 2, WIDTH)  # BART counts from 2
        yield from norm(f"model.{stack}.layernorm_embedding")
        for layer in range(LAYERS):
            prefix = f"model.{stack}.layers.{layer}"
            for attention in attentions:
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    yield from linear(f"{prefix}.{attention}.{projection}", WIDTH, WIDTH)
                yield from norm(f"{prefix}.{attention}_layer_norm")
            yield from linear(f"{prefix}.fc1", FEED_FORWARD, WIDTH)
            yield from linear(f"{prefix}.fc2", WIDTH, FEED_FORWARD)
            yield from norm(f"{prefix}.final_layer_norm")


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
