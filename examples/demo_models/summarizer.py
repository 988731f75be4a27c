"""Trains docs-bart-mini: the body of a docstring in, its one line out.

    python examples/demo_models/summarizer.py build/demo_models --infilling-minutes 30 --minutes 60

First text infilling, as BART was trained: without it a decoder this small never looks at its source. Then the task.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizer import BOS, EOS, MASK, PAD, learn, save
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from training import Tokens, batches, encode, padded, train
from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig

NAME = "docs-bart-mini"
VOCABULARY = 8192
IGNORED = -100
MASKED_SHARE, MEAN_SPAN = 0.3, 3
MAX_POSITIONS = 256
MAX_SUMMARY_TOKENS = 40
# A body is cut at one of these: short ones are cheap, long ones are in the demo.
SOURCE_TOKENS = (64, 96, 128, 192, MAX_POSITIONS)
LABEL_SMOOTHING = 0.1

Pair = tuple[Tokens, Tokens]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder that corpus.py wrote; checkpoints go there too")
    parser.add_argument("--infilling-minutes", type=float, default=30)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = pq.read_table(options.folder / "train.parquet")
    bodies, lines = table["text"].to_pylist(), table["reference"].to_pylist()
    tokenizer = tokenizer_of(options.folder, bodies + lines)
    texts = encode(tokenizer, [f"{line} {body}" for line, body in zip(lines, bodies, strict=True)])
    model = BartForConditionalGeneration(config(tokenizer.get_vocab_size())).to(device, torch.bfloat16)
    if device.type == "cpu":
        model.set_attn_implementation("eager")  # the fused kernel's backward takes twice as long there
    model.generation_config = generation_config()
    print(
        f"{model.num_parameters():,} parameters, {sum(map(len, texts)):,} tokens of {len(texts):,} docstrings",
        flush=True,
    )

    def loss_of(pairs: list[Pair]) -> Tensor:
        return loss(model, pairs, device)

    def keep(name: str) -> None:
        save(tokenizer, options.folder / name, MAX_POSITIONS)
        model.save_pretrained(options.folder / name)

    train(
        model,
        loss_of,
        infilling(texts, options.batch_tokens),
        options.infilling_minutes,
        options.learning_rate,
        lambda: keep(f"{NAME}-infilling"),
    )
    del texts
    targets = [tokens[1:][:MAX_SUMMARY_TOKENS] for tokens in encode(tokenizer, lines)]
    pairs = list(zip(cut(encode(tokenizer, bodies)), targets, strict=True))
    train(
        model,
        loss_of,
        batches(pairs, lambda pair: len(pair[0]) + len(pair[1]), options.batch_tokens, seed=0),
        options.minutes,
        options.learning_rate,
        lambda: keep(NAME),
    )


def config(vocabulary: int) -> BartConfig:
    width, layers = 256, 3
    return BartConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_position_embeddings=MAX_POSITIONS,
        dropout=0.0,
        attention_dropout=0.0,
        forced_eos_token_id=EOS,
    )


def generation_config() -> GenerationConfig:
    special = {"bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": EOS}
    return GenerationConfig(
        **special, forced_eos_token_id=EOS, num_beams=4, max_length=MAX_SUMMARY_TOKENS, no_repeat_ngram_size=3
    )


def tokenizer_of(folder: Path, texts: list[str]) -> Tokenizer:
    """The one of an earlier run where there is one, so that checkpoints stay readable."""
    if not (folder / NAME / "tokenizer.json").exists():
        save(learn(texts, VOCABULARY), folder / NAME, MAX_POSITIONS)
    return Tokenizer.from_file(str(folder / NAME / "tokenizer.json"))


def loss(model: BartForConditionalGeneration, pairs: list[Pair], device: torch.device) -> Tensor:
    """Mean cross-entropy of the targets' tokens, each pair (source, target) with all its tokens, </s> included."""
    source_BS = padded([source for source, _ in pairs], PAD, device)
    target_BT = padded([target for _, target in pairs], IGNORED, device)
    start_B1 = torch.full_like(target_BT[:, :1], EOS)
    shifted_BT = torch.cat([start_B1, target_BT[:, :-1].clamp(min=PAD)], dim=1)
    is_real_BS, counts_BT = source_BS != PAD, target_BT != IGNORED
    found = model.model(source_BS, attention_mask=is_real_BS, decoder_input_ids=shifted_BT, use_cache=False)
    hidden_BTD = found.last_hidden_state
    logits_NV = hidden_BTD[counts_BT] @ model.model.shared.weight.T
    return cross_entropy(logits_NV.float(), target_BT[counts_BT], label_smoothing=LABEL_SMOOTHING)


def infilling(texts: list[Tokens], batch_tokens: int) -> Iterator[list[Pair]]:
    """Pieces of the texts with masked spans, and the pieces whole: short pieces, so that copying is learnt soon."""
    chance = np.random.default_rng(0)
    tokens = np.concatenate(texts)
    while True:
        length = int(chance.integers(12, 65))
        starts = chance.integers(0, len(tokens) - length, size=batch_tokens // (2 * length))
        pieces = [tokens[start : start + length] for start in starts]
        yield [(masked(piece, chance), piece) for piece in pieces]


def masked(piece: Tokens, chance: np.random.Generator) -> Tokens:
    """Spans of Poisson length, together about MASKED_SHARE of the piece, each replaced by one <mask>."""
    source = piece.copy()
    num_left = round(len(piece) * MASKED_SHARE)
    while num_left > 0:
        span = min(int(chance.poisson(MEAN_SPAN)) + 1, num_left)
        start = int(chance.integers(0, len(piece) - span + 1))
        source[start : start + span] = MASK
        num_left -= span
    repeated = (source == MASK) & (np.roll(source, 1) == MASK)
    repeated[0] = False
    return source[~repeated]


def cut(sources: list[Tokens]) -> list[Tokens]:
    """Each at one of SOURCE_TOKENS, </s> again at its end."""
    chance = random.Random(0)
    return [np.append(source[:-1][: chance.choice(SOURCE_TOKENS) - 1], np.int32(EOS)) for source in sources]


if __name__ == "__main__":
    main()
