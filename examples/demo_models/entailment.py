"""Trains docs-bart-mini-mnli: is a text about a topic? It begins with vectors of latent semantic analysis.

    python examples/demo_models/entailment.py build/demo_models --minutes 12 45

A model this small hardly finds out by itself that it must compare topic and text. So its tokens' vectors are near each
other where tokens share texts, its attention begins by looking at what is alike, and the first questions are about
short pieces: whether a word stands in them, then what they are about (questions.py). Then all lengths, at lower rates.
"""

import argparse
from collections.abc import Iterator
from itertools import chain, cycle, islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from questions import MAX_CHARACTERS, MAX_POSITIONS, Question, Questions
from scipy.sparse import csr_matrix
from semantics import components, unit
from tokenizer import PAD, learn, save
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training import encode, padded, train
from transformers import BartConfig, BartForSequenceClassification

NAME = "docs-bart-mini-mnli"
LABELS = ("contradiction", "entailment")
VOCABULARY, WIDTH = 16_384, 256  # many words whole, so that they have vectors of their own
RARE = 5  # tokens of fewer texts get a random vector
NUM_MATCHING_FIRST = 350  # batches
VALUE_SHARE = 0.5
PHASES = ((1e-3, True, 4), (6e-4, False, 6))  # learning rate, short pieces first, every which batch is matching


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder that corpus.py wrote; checkpoints go there too")
    parser.add_argument("--minutes", type=float, nargs=len(PHASES), default=(12, 45), help="of each phase")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = pq.read_table(options.folder / "train.parquet").to_pylist()
    texts = [f"{row['reference']} {row['text']}" for row in rows]
    tokenizer = learn(texts, VOCABULARY, lowercase=True)
    model = new_model(token_vectors([text[:MAX_CHARACTERS] for text in texts], tokenizer)).to(device, torch.bfloat16)
    if device.type == "cpu":
        model.set_attn_implementation("eager")  # the fused kernel's backward takes twice as long there
    questions = Questions(rows, tokenizer, options.batch_tokens)
    print(f"{model.num_parameters():,} parameters, {len(rows):,} docstrings", flush=True)

    def keep() -> None:
        save(tokenizer, options.folder / NAME, MAX_POSITIONS)
        model.save_pretrained(options.folder / NAME)

    matching = questions.matching()
    first = islice(matching, NUM_MATCHING_FIRST)
    for (rate, short_first, every), minutes in zip(PHASES, options.minutes, strict=True):
        source = chain(first, in_turns(questions.asking(short_first), matching, every))
        train(model, lambda some: loss(model, some, device), source, minutes, rate, keep)


def in_turns(most: Iterator[list[Question]], some: Iterator[list[Question]], every: int) -> Iterator[list[Question]]:
    """Every so many batches one of `some`: the task alone would undo the matching."""
    return (next(source) for source in cycle([some] + [most] * (every - 1)))


def token_vectors(texts: list[str], tokenizer: Tokenizer) -> Tensor:
    """Float32 [VOCABULARY, WIDTH], of length one; near each other where tokens share texts."""
    rows = [np.unique(tokens) for tokens in encode(tokenizer, texts, add_special_tokens=False)]
    ends = np.cumsum([0, *map(len, rows)])
    counts = csr_matrix((np.ones(ends[-1], np.float32), np.concatenate(rows), ends), shape=(len(rows), VOCABULARY))
    num_with = np.asarray(counts.sum(0)).ravel()
    rarity = np.where(num_with < RARE, 0, np.log(len(texts) / num_with.clip(1)))
    vectors = unit(components(counts.multiply(rarity), WIDTH))
    chance = np.random.default_rng(0)
    vectors[num_with < RARE] = unit(chance.standard_normal((int((num_with < RARE).sum()), WIDTH)))
    return torch.from_numpy(vectors)


def new_model(vectors: Tensor) -> BartForSequenceClassification:
    model = BartForSequenceClassification(config())
    with torch.no_grad():
        model.model.shared.weight.copy_(vectors)
        for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
            for attention in (layer.self_attn, getattr(layer, "encoder_attn", None)):
                if attention is not None:
                    add_likeness(attention)
        # The product compares topics by the entailment logit alone, so nothing may be said in both logits at once.
        head = model.classification_head.out_proj
        head.weight[0] = -head.weight[1]
    return model


def add_likeness(attention: nn.Module) -> None:
    """Look at what is alike, and add some of it (A. Trockman, J. Kolter, Mimetic initialization, 2023)."""
    one = torch.eye(WIDTH)
    for part, share in (("q_proj", 1.0), ("k_proj", 1.0), ("v_proj", VALUE_SHARE), ("out_proj", VALUE_SHARE)):
        getattr(attention, part).weight += share * one


def config() -> BartConfig:
    return BartConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        max_position_embeddings=MAX_POSITIONS,
        dropout=0.0,
        attention_dropout=0.0,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )


def loss(model: BartForSequenceClassification, questions: list[Question], device: torch.device) -> Tensor:
    tokens_BS = padded([tokens for tokens, _ in questions], PAD, device)
    answer_B = torch.tensor([answer for _, answer in questions], dtype=torch.float32, device=device)
    logits_BC = model(tokens_BS, attention_mask=tokens_BS != PAD, use_cache=False).logits
    return cross_entropy(logits_BC.float(), torch.stack([1 - answer_B, answer_B], dim=1))


if __name__ == "__main__":
    main()
