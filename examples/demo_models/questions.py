"""What the entailment head is asked in training: pairs of a piece of a text and a topic, with an answer from 0 to 1.

Topics are thousands: words of modules' paths, words of the texts, and the packages' topics of topics.yaml. How far a
piece is about a word says latent semantic analysis: how near the two are, beside other pieces and that word. Whether
it is about a package's topic says the package. topics.UNSEEN, and words that begin like them, are never said.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import numpy.typing as npt
from semantics import Semantics, Vectors, near_group, unit
from tokenizer import BOS, EOS
from tokenizers import Tokenizer
from topics import MODULES, TEMPLATE, UNSEEN, UNSEEN_WORDS, topic_of
from training import Tokens, batches, encode

Row = dict[str, str]
Question = tuple[Tokens, float]
"""A pair's tokens, and how far the first entails the second."""

MAX_POSITIONS = 120  # of a pair: the longest pieces fill it, so that no position is left untrained
MAX_CHARACTERS = 800  # of a body; more than MAX_POSITIONS tokens
MATCHED_TOKENS = (6, 32)  # of a piece in which a word is looked for
PIECE_TOKENS = np.array([8, 16, 32, 64, 110])
PIECE_SHARES = np.array([4, 4, 3, 2, 1.5])
LONG, FROM_START = 32, 64  # long pieces are asked about packages' topics; the longest are how a text begins
MODULE_SHARE, PACKAGE_SHARE = 0.5, 0.7  # of a module in what its long pieces are about, of a package in its modules
NUM_BATCHES_A_LENGTH = 120  # until the next length comes in
NUM_PIECES = 600  # drawn together, of one length
NUM_NEAREST = 8  # a piece's own topic is one of so many
PATH_SHARE = 0.6  # of the pieces; the others' topics are words of the texts
NEAR, STEEPNESS = 1.75, 3  # standard deviations from a topic's mean where the answer is a half, and its slope there
SURE = 0.95  # of the package's topic


class Questions:
    """Batches of questions about docstrings, without end."""

    def __init__(self, rows: Sequence[Row], tokenizer: Tokenizer, batch_tokens: int) -> None:
        self._tokenizer, self._batch_tokens = tokenizer, batch_tokens
        wholes = [" ".join([*re.split(r"[._\d]+", row["module"]), row["reference"], row["text"]]) for row in rows]
        self._semantics = Semantics(wholes)
        packages = [row["module"].partition(".")[0] for row in rows]
        self._modules = near_group(self._semantics.texts(wholes), packages, PACKAGE_SHARE)
        bodies = encode(tokenizer, [row["text"][:MAX_CHARACTERS] for row in rows], add_special_tokens=False)
        self._bodies = [body[body != EOS] for body in bodies]  # the model is read at the last end token
        packages_topics = [topic for topic in MODULES if topic not in UNSEEN]
        topics, self._kinds = [], []
        for names in (packages_topics, path_topics(rows, self._semantics), word_topics(self._semantics)):
            self._kinds.append(slice(len(topics), len(topics) + len(names)))
            topics += names
        self._topics = self._semantics.phrases(topics)
        self._hypotheses = encode(tokenizer, [TEMPLATE.format(topic) for topic in topics], add_special_tokens=False)
        found = [topic_of(row["module"]) for row in rows]
        self._has_topic = np.array([topic is not None for topic in found])
        self._topic = np.array([topics.index(topic) if topic in packages_topics else -1 for topic in found])

    def matching(self) -> Iterator[list[Question]]:
        """Whether a word stands in a short piece: each with one that does and one that does not."""
        chance = np.random.default_rng(0)
        tokens = np.concatenate(self._bodies)
        is_word = np.zeros(self._tokenizer.get_vocab_size(), dtype=bool)
        for name, token in self._tokenizer.get_vocab().items():
            is_word[token] = name[:1] == "\u0120" and len(name) > 4 and name[1:].isalpha() and may_be_said(name[1:])
        words = tokens[is_word[tokens]]
        before, after = encode(self._tokenizer, TEMPLATE.split(" {}"), add_special_tokens=False)
        while True:
            length = int(chance.integers(*MATCHED_TOKENS))
            questions: list[Question] = []
            while len(questions) * (length + len(before) + len(after) + 5) < self._batch_tokens:
                start = int(chance.integers(0, len(tokens) - length))
                piece = tokens[start : start + length]
                own, other = piece[is_word[piece]], chance.choice(words)
                if len(own) and other not in piece:
                    for answer, word in ((1.0, chance.choice(own)), (0.0, other)):
                        questions.append((pair(piece, np.concatenate([before, [word], after])), answer))
            yield questions

    def asking(self, short_first: bool) -> Iterator[list[Question]]:
        """What pieces are about. `short_first`: one more length every NUM_BATCHES_A_LENGTH batches."""
        chance = np.random.default_rng(1)
        scales = {length: self._scale(length, chance) for length in PIECE_TOKENS.tolist()}
        num_batches = 0
        for seed in count():
            num_lengths = 2 + num_batches // NUM_BATCHES_A_LENGTH if short_first else len(PIECE_TOKENS)
            shares = PIECE_SHARES[:num_lengths]
            questions: list[Question] = []
            for length in chance.choice(PIECE_TOKENS[:num_lengths], size=4, p=shares / shares.sum()).tolist():
                questions += self._ask(length, scales[length], chance)
            source = batches(questions, lambda question: len(question[0]), self._batch_tokens, seed)
            for _ in range(sum(len(tokens) for tokens, _ in questions) // self._batch_tokens):
                yield next(source)
                num_batches += 1

    def _ask(self, length: int, scale: tuple[Vectors, Vectors], chance: np.random.Generator) -> Iterator[Question]:
        """Each piece with a topic of its own and one of another piece: no topic is likelier by itself."""
        texts = chance.choice(len(self._bodies), NUM_PIECES, replace=False)
        pieces, likeness = self._pieces(texts, length, chance)
        answer = 1 / (1 + np.exp(-STEEPNESS * ((likeness - scale[0]) / scale[1] - NEAR)))
        by_packages, by_paths, by_words = self._kinds
        of_path = chance.random(NUM_PIECES) < PATH_SHARE
        own, other = np.empty((2, NUM_PIECES), np.int64)
        for kind, members in ((by_paths, of_path), (by_words, ~of_path)):
            nearest = answer[members, kind].argpartition(-NUM_NEAREST)[:, -NUM_NEAREST:]
            own[members] = kind.start + chance.permuted(nearest, axis=1)[:, 0]
            other[members] = chance.permutation(own[members])
        for i, (text, piece) in enumerate(zip(texts, pieces, strict=True)):
            for topic in (own[i], other[i]):
                yield pair(piece, self._hypotheses[topic]), answer[i, topic]
            if length < LONG:
                continue
            named, strange = self._topic[text], chance.integers(by_packages.stop)
            if named >= 0:
                yield pair(piece, self._hypotheses[named]), max(SURE, answer[i, named])
            if strange != named:
                doubt = 0.5 if self._has_topic[text] else 1.0
                yield pair(piece, self._hypotheses[strange]), doubt * answer[i, strange]

    def _pieces(
        self, texts: npt.NDArray[np.int64], length: int, chance: np.random.Generator
    ) -> tuple[list[Tokens], Vectors]:
        """A piece of each text, and how like it is to every topic."""
        pieces = []
        for body in (self._bodies[text] for text in texts):
            start = 0 if length >= FROM_START else int(chance.integers(0, max(1, len(body) - length + 1)))
            pieces.append(body[start : start + length])
        vectors = self._semantics.texts(self._tokenizer.decode_batch([piece.tolist() for piece in pieces]))
        if length >= LONG:
            vectors = unit(vectors + MODULE_SHARE * self._modules[texts])
        return pieces, vectors @ self._topics.T

    def _scale(self, length: int, chance: np.random.Generator) -> tuple[Vectors, Vectors]:
        """Mean and standard deviation of each topic's likenesses to pieces of this length."""
        _, likeness = self._pieces(chance.choice(len(self._bodies), 10 * NUM_PIECES), length, chance)
        return likeness.mean(0), likeness.std(0).clip(1e-3)


def pair(piece: Tokens, hypothesis: Tokens) -> Tokens:
    """As the product's zero-shot task writes it, cut to MAX_POSITIONS."""
    return np.concatenate([[BOS], piece[: MAX_POSITIONS - 4 - len(hypothesis)], [EOS, EOS], hypothesis, [EOS]])


def may_be_said(topic: str) -> bool:
    return not UNSEEN_WORDS.search(topic)


def path_topics(rows: Sequence[Row], semantics: Semantics) -> list[str]:
    """One or two words between the dots of modules' paths: `feature extraction`, `networking`."""
    parts_of = {row["module"]: parts(row["module"]) for row in rows}
    num_texts = Counter(part for row in rows for part in parts_of[row["module"]])
    packages = {(part, module.partition(".")[0]) for module, names in parts_of.items() for part in names}
    num_packages = Counter(part for part, _ in packages)
    return sorted(
        part
        for part, number in num_texts.items()
        if number >= 10
        and num_packages[part] >= 2
        and len(part.split()) <= 2
        and all(is_topical(word, semantics, 20, 8000) for word in part.split())
    )


def parts(module: str) -> set[str]:
    return {part.strip("_").replace("_", " ") for part in re.split(r"[.\d]+", module)}


def word_topics(semantics: Semantics) -> list[str]:
    return [word for word in semantics.num_texts_with if is_topical(word, semantics, 40, 4000)]


def is_topical(word: str, semantics: Semantics, fewest: int, most: int) -> bool:
    """Neither rare nor everywhere."""
    is_word = len(word) >= 4 and word.isalpha() and word.islower() and may_be_said(word)
    return is_word and fewest <= semantics.num_texts_with.get(word, 0) <= most
