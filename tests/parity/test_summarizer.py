"""What issue after issue leans on: a BART with bart-large-cnn's habits gives transformers' logits and tokens.

Three checkpoints of odd sizes, batches of 1, 3 and 8 prompts of mixed lengths, greedy and beam 4 with every processor
that bart-large-cnn's configuration names.
"""

import copy
import random
from pathlib import Path

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from batchloom import models

# (width, heads, feed-forward, encoder layers, decoder layers, vocabulary)
SIZES = [(36, 3, 50, 1, 3, 503), (35, 5, 77, 2, 1, 1009), (56, 7, 64, 3, 2, 50)]
HABITS = {
    "num_beams": 4, "max_length": 30, "min_length": 12, "no_repeat_ngram_size": 3, "length_penalty": 2.0,
    "early_stopping": True, "forced_bos_token_id": 0, "forced_eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
# We may be as far from the exact logits (float64) as the reference's own float32 is. The layers' weights are drawn wide
# here, so that is up to 1e-5; four times, because both are the largest of a few thousand roundings.
ROUNDINGS = 4


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"width {size[0]}, vocabulary {size[-1]}")
def pair(request, tmp_path_factory) -> tuple[BartForConditionalGeneration, Path]:
    """The reference's model and the folder it is saved in."""
    width, heads, feed_forward, encoder_layers, decoder_layers, vocabulary = request.param
    torch.manual_seed(width)
    config = BartConfig(
        vocab_size=vocabulary, d_model=width, encoder_attention_heads=heads, decoder_attention_heads=heads,
        encoder_ffn_dim=feed_forward, decoder_ffn_dim=feed_forward, encoder_layers=encoder_layers,
        decoder_layers=decoder_layers, max_position_embeddings=64,
        init_std=0.4,  # far apart logits: rounding decides nothing
    )  # fmt: skip
    model = BartForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.final_logits_bias)
    model.generation_config.update(**HABITS)
    folder = tmp_path_factory.mktemp("summarizer")
    model.save_pretrained(folder)
    return model, folder


def prompts(num: int, vocabulary: int) -> list[list[int]]:
    chance = random.Random(num)
    lengths = [64, 1, *(chance.randint(2, 63) for _ in range(num))][:num] if num > 1 else [37]
    return [[0, *chance.choices(range(4, vocabulary), k=length - 2), 2][:length] for length in lengths]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_logits_are_the_references(pair, batch_size: int) -> None:
    reference, folder = pair
    ours = models.load_model(str(folder), dtype="float32", device="cpu")
    batch = prompts(batch_size, reference.config.vocab_size)
    longest = max(map(len, batch))
    ids = torch.tensor([prompt + [1] * (longest - len(prompt)) for prompt in batch])
    mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in batch])
    said = torch.randint(4, reference.config.vocab_size, (batch_size, 9))
    with torch.no_grad():
        theirs = reference(input_ids=ids, attention_mask=mask, decoder_input_ids=said).logits
        exact_model = copy.deepcopy(reference).double()
        exact = exact_model(input_ids=ids, attention_mask=mask, decoder_input_ids=said).logits
    bound = ROUNDINGS * (theirs - exact).abs().max()
    assert (ours(ids, mask, said) - exact).abs().max() < bound


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_tokens_are_the_references(pair, batch_size: int, num_beams: int) -> None:
    """The reference sees each prompt alone, so that its own padding cannot be what agrees."""
    reference, folder = pair
    engine = models.Engine(models.load_model(str(folder), dtype="float32", device="cpu"))
    batch = prompts(batch_size, reference.config.vocab_size)
    done = engine.generate(batch, models.GenerationParams(num_beams=num_beams))
    expected = []
    with torch.no_grad():
        for prompt in batch:
            expected.append(reference.generate(torch.tensor([prompt]), num_beams=num_beams)[0, 1:].tolist())
    assert [request.outputs[0].token_ids for request in done] == expected
    assert all(len(tokens) >= HABITS["min_length"] - 1 for tokens in expected)
