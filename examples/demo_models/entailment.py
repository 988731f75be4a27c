"""Trains docs-bart-mini-mnli: is a text about a topic? From the summarizer's checkpoint.

    python examples/demo_models/entailment.py build/demo_models --matching-minutes 8 --minutes 32

First whether a word is among a few others: without it a model this small never looks from topic to text. Then the task.
A text's topics are that of its package, words of its module's path and rare words of its first line, which the model
does not see, and rare words that it does see. Thousands of topics, so that it learns what "about" means and not a list;
those of topics.UNSEEN are never said.
"""

import argparse
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from summarizer import NAME as SUMMARIZER
from tokenizer import BOS, EOS, PAD, save
from tokenizers import Tokenizer
from topics import TEMPLATE, UNSEEN_WORDS, topic_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training import Tokens, batches, encode, padded, train
from transformers import BartForSequenceClassification

NAME = f"{SUMMARIZER}-mnli"
LABELS = ("contradiction", "entailment")
MAX_POSITIONS = 64  # the first lines of a body say what it is about, and short pairs are many pairs
NUM_TEXT_TOKENS = (24, 32, MAX_POSITIONS)  # a body is cut at one of these
PIECE_TOKENS = (8, 32)  # of a piece in which a word is looked for
SEEN_CHARACTERS = 200  # of a body, from which the words that it does see are taken
RARE = (5, 1500)  # a word is a topic if so many texts have it
CHUNK = 4000  # texts whose questions are sorted into batches together

Question = tuple[Tokens, int]
"""A pair's tokens, and its label."""


@dataclass(frozen=True, slots=True)
class Text:
    """A body's tokens without special ones, and what it is about."""

    tokens: Tokens
    topics: tuple[tuple[str, ...], ...]
    """By kind: the package's, words of path and first line, words of the body; a kind can be empty."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder where summarizer.py left its checkpoints")
    parser.add_argument("--matching-minutes", type=float, default=8)
    parser.add_argument("--minutes", type=float, default=32)
    parser.add_argument("--start", type=Path, help="checkpoint to begin with (default: the summarizer's)")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = options.start or options.folder / SUMMARIZER
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    model = BartForSequenceClassification.from_pretrained(
        start, dtype=torch.bfloat16, id2label=dict(enumerate(LABELS)), label2id={x: i for i, x in enumerate(LABELS)}
    ).to(device)
    for stack in (model.model.encoder, model.model.decoder):
        stack.embed_positions.weight = nn.Parameter(stack.embed_positions.weight[: MAX_POSITIONS + 2].clone())
    model.config.max_position_embeddings = MAX_POSITIONS
    if device.type == "cpu":
        model.set_attn_implementation("eager")  # the fused kernel's backward takes twice as long there
    texts = texts_of(pq.read_table(options.folder / "train.parquet").to_pylist(), tokenizer)
    print(
        f"{len(texts):,} texts, {sum(bool(text.topics[0]) for text in texts):,} whose package has a topic", flush=True
    )

    def keep() -> None:
        save(tokenizer, options.folder / NAME, MAX_POSITIONS)
        model.save_pretrained(options.folder / NAME)

    matched, asked = (make(texts, tokenizer, options.batch_tokens) for make in (matching, asking))
    both = chain.from_iterable(zip(matched, asked, strict=True))  # the task alone would undo the matching
    for source, minutes in ((matched, options.matching_minutes), (both, options.minutes)):
        train(
            model,
            lambda questions: loss(model, questions, device),
            source,
            minutes,
            options.learning_rate,
            keep,
        )


def texts_of(rows: list[dict[str, str]], tokenizer: Tokenizer) -> list[Text]:
    """Those that are about anything that may be said."""
    unread = [words_of(row["reference"]) | path_words(row["module"]) for row in rows]
    read = [words_of(row["text"][:SEEN_CHARACTERS]) for row in rows]
    num_with = Counter(word for words in (*unread, *read) for word in words)

    def sayable(words: set[str]) -> tuple[str, ...]:
        return tuple(sorted(word for word in words if may_be_said(word) and RARE[0] <= num_with[word] <= RARE[1]))

    bodies = encode(tokenizer, [row["text"][: 2 * SEEN_CHARACTERS] for row in rows], add_special_tokens=False)
    texts = []
    for row, tokens, *words in zip(rows, bodies, unread, read, strict=True):
        topic = topic_of(row["module"])
        own = (topic,) if topic and may_be_said(topic) else ()
        tokens = tokens[tokens != EOS]  # some texts are about tokenizers; the model is read at the last end token
        texts.append(Text(tokens, (own, *map(sayable, words))))
    return [text for text in texts if any(text.topics)]


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def may_be_said(topic: str) -> bool:
    return not UNSEEN_WORDS.search(topic)


def path_words(module: str) -> set[str]:
    """`linear model` and `ridge` for `sklearn.linear_model._ridge`."""
    parts = (part.strip("_").replace("_", " ") for part in module.split(".")[1:])
    return {part for part in parts if len(part) > 3 and part.replace(" ", "").isalpha()}


def matching(texts: list[Text], tokenizer: Tokenizer, batch_tokens: int) -> Iterator[list[Question]]:
    """Short pieces of the texts, each with a word that it has and one that it has not."""
    chance = np.random.default_rng(0)
    tokens = np.concatenate([text.tokens for text in texts])
    is_word = np.zeros(tokenizer.get_vocab_size(), dtype=bool)
    for name, token in tokenizer.get_vocab().items():
        is_word[token] = name[:1] == "\u0120" and len(name) > 4 and name[1:].isalpha() and may_be_said(name[1:])
    words = tokens[is_word[tokens]]
    before, after = (tokenizer.encode(part, add_special_tokens=False).ids for part in TEMPLATE.split(" {}"))
    while True:
        length = int(chance.integers(*PIECE_TOKENS))
        questions: list[Question] = []
        while len(questions) * (length + len(before) + len(after) + 5) < batch_tokens:
            start = int(chance.integers(0, len(tokens) - length))
            piece = tokens[start : start + length]
            own, other = piece[is_word[piece]], chance.choice(words)
            if len(own) and other not in piece:
                for label, word in ((1, chance.choice(own)), (0, other)):
                    pair = np.concatenate([[BOS], piece, [EOS, EOS], before, [word], after, [EOS]])
                    questions.append((pair, label))
        yield questions


def asking(texts: list[Text], tokenizer: Tokenizer, batch_tokens: int) -> Iterator[list[Question]]:
    """Every text with a topic of its own and one of another text, drawn alike: no topic is likelier by itself."""
    chance = random.Random(0)
    while True:
        chance.shuffle(texts)
        for first in range(0, len(texts), CHUNK):
            chunk = texts[first : first + CHUNK]
            questions = [question for text in chunk for question in ask(text, texts, tokenizer, chance)]
            total = sum(len(tokens) for tokens, _ in questions)
            source = batches(questions, lambda question: len(question[0]), batch_tokens, seed=first)
            for _ in range(total // batch_tokens):
                yield next(source)


def ask(text: Text, texts: list[Text], tokenizer: Tokenizer, chance: random.Random) -> Iterator[Question]:
    kind = chance.choice([kind for kind, topics in enumerate(text.topics) if topics])
    own = chance.choice(text.topics[kind])
    known = set(chain.from_iterable(text.topics))
    other = own
    while other in known:
        strange = chance.choice(texts).topics[kind]
        other = chance.choice(strange) if strange else own
    num_tokens = chance.choice(NUM_TEXT_TOKENS)
    for label, topic in ((1, own), (0, other)):
        hypothesis = tokenizer.encode(TEMPLATE.format(topic), add_special_tokens=False).ids
        tokens = text.tokens[: min(num_tokens, MAX_POSITIONS - 4 - len(hypothesis))]
        yield np.concatenate([[BOS], tokens, [EOS, EOS], hypothesis, [EOS]]), label


def loss(model: BartForSequenceClassification, questions: list[Question], device: torch.device) -> Tensor:
    tokens_BS = padded([tokens for tokens, _ in questions], PAD, device)
    logits_BC = model(tokens_BS, attention_mask=tokens_BS != PAD, use_cache=False).logits
    return cross_entropy(logits_BC.float(), torch.tensor([label for _, label in questions], device=device))


if __name__ == "__main__":
    main()
