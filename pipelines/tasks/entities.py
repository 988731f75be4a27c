"""Aggregate token scores to entities: label words, join neighbours of one label. It knows no model and no rows."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from batchloom.pipelines.tasks.base import Values
from batchloom.pipelines.tasks.words import is_inside_word

NO_ENTITY = "O"


@dataclass(frozen=True, slots=True)
class Token:
    """Characters [start, end) of the text, and a score for each label."""

    start: int
    end: int
    scores: Values
    word: int | None = None
    """Which of the words it is of, where the text is given as these."""


@dataclass(frozen=True, slots=True)
class Entity:
    """One entity, as in the output column."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Labelled:
    """Characters [start, end) with their label, including its B- or I-, and the scores that it has there."""

    start: int
    end: int
    label: str
    scores: Sequence[float]

    @property
    def tag(self) -> str:
        return self.label[2:] if self.label[:2] in ("B-", "I-") else self.label


def entities_of(
    text: str, tokens: Sequence[Token], labels: Sequence[str], strategy: str, ignored: Container[str] = (NO_ENTITY,)
) -> Iterator[Entity]:
    """Yield the entities of a text in order, without those of `ignored` names; `strategy`: see
    TokenClassificationOptions."""
    labelled = [_label(group, labels, strategy) for group in groups(text, tokens, strategy)]
    runs = [[one] for one in labelled] if strategy == "none" else list(_runs(labelled))
    for run in runs:
        name = run[0].label if strategy == "none" else run[0].label.split("-", 1)[-1]
        start, end = _without_spaces(text, run[0].start, run[-1].end)
        if name not in ignored and text[start:end].strip():  # an entity of white space alone is dropped
            score = float(np.mean([score for one in run for score in one.scores]))
            yield Entity(name, score, text[start:end], start, end)


def groups(text: str, tokens: Sequence[Token], strategy: str) -> Iterator[Sequence[Token]]:
    """Yield the tokens that have one label: each alone, under `simple` those that share a character, else words.

    Tokens that share a character are always of one word, and words end at any white space; transformers' can begin with
    the second byte of a character, and end at spaces alone. In scripts without spaces each token is a word. A text that
    is given as words has these.
    """
    first = 0
    for index in range(1, len(tokens)):
        start = tokens[index].start
        before, word = tokens[index - 1], tokens[index].word
        shares = strategy != "none" and start < before.end
        is_inside = is_inside_word(text, start) if word is None else word == before.word
        if not shares and (strategy in ("none", "simple") or not is_inside):
            yield tokens[first:index]
            first = index
    if tokens:
        yield tokens[first:]


def _label(tokens: Sequence[Token], labels: Sequence[str], strategy: str) -> Labelled:
    """Return the label of a group of tokens by the strategy."""
    start, end = tokens[0].start, tokens[-1].end
    if strategy == "simple":
        each = [_best(start, end, labels, token.scores) for token in tokens]
        if len({one.tag for one in each}) > 1:  # one character has one label: the most certain
            return max(each, key=lambda one: max(one.scores))
        return Labelled(start, end, each[0].label, [score for one in each for score in one.scores])
    if strategy == "average":
        return _best(start, end, labels, np.mean([token.scores for token in tokens], axis=0))
    if strategy == "max":
        return _best(start, end, labels, max(tokens, key=lambda token: token.scores.max()).scores)
    return _best(start, end, labels, tokens[0].scores)


def _best(start: int, end: int, labels: Sequence[str], scores: Values) -> Labelled:
    best = int(scores.argmax())
    return Labelled(start, end, labels[best], [float(scores[best])])


def _runs(labelled: Sequence[Labelled]) -> Iterator[list[Labelled]]:
    """Yield runs of neighbours with the same tag; a label with B- begins a new run."""
    run: list[Labelled] = []
    for one in labelled:
        if run and (one.tag != run[-1].tag or one.label.startswith("B-")):
            yield run
            run = []
        run.append(one)
    if run:
        yield run


def _without_spaces(text: str, start: int, end: int) -> tuple[int, int]:
    """Strip white space from a range: BLOOM's tokens include the space before a word, an entity does not."""
    word = text[start:end]
    stripped = word.strip()
    if not stripped:
        return start, end
    start += len(word) - len(word.lstrip())
    return start, start + len(stripped)


def without_overlaps(entities: Sequence[Entity]) -> list[Entity]:
    """Merge several windows' entities: of overlapping ones keep the longest, of equally long ones the best score. What
    is no entity gives way to what is one."""

    def rank(entity: Entity) -> tuple[bool, int, float]:
        return entity.entity_group != NO_ENTITY, entity.end - entity.start, entity.score

    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity.start):
        if not kept or not kept[-1].start <= entity.start < kept[-1].end:
            kept.append(entity)
        elif rank(entity) > rank(kept[-1]):
            kept[-1] = entity
    return kept
