"""Aggregate token scores to entities: label words, join neighbours of one label. It knows no model and no rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from batchloom.pipelines.tasks.base import Values

NO_ENTITY = "O"


@dataclass(frozen=True)
class Token:
    """Characters [start, end) of the text, and a score for each label."""

    start: int
    end: int
    scores: Values


@dataclass(frozen=True)
class Entity:
    """One entity, as in the output column."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


@dataclass(frozen=True)
class Labelled:
    """Characters [start, end) with their label, including its B- or I-, and its score."""

    start: int
    end: int
    label: str
    score: float

    @property
    def tag(self) -> str:
        return self.label[2:] if self.label[:2] in ("B-", "I-") else self.label


def entities_of(text: str, tokens: Sequence[Token], labels: Sequence[str], strategy: str) -> Iterator[Entity]:
    """Yield the entities of a text in order; `strategy`: see TokenClassificationOptions."""
    groups = [tokens[i : i + 1] for i in range(len(tokens))] if strategy in ("none", "simple") else words(text, tokens)
    labelled = [_label(group, labels, strategy) for group in groups]
    runs = [[one] for one in labelled] if strategy == "none" else list(_runs(labelled))
    for run in runs:
        name = run[0].label if strategy == "none" else run[0].label.split("-", 1)[-1]
        start, end = _without_spaces(text, run[0].start, run[-1].end)
        if name != NO_ENTITY and text[start:end].strip():  # an entity of white space alone is dropped
            yield Entity(name, float(np.mean([one.score for one in run])), text[start:end], start, end)


def words(text: str, tokens: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """Yield the tokens of each word: a token continues a word if there is no space at its start or before it.

    Tokens that share a character are one word too. transformers does not check this: its words can begin with the
    second byte of a character.
    """
    first = 0
    for index, token in enumerate(tokens):
        in_word = token.start > 0 and " " not in text[token.start - 1 : token.start + 1]
        continues = in_word or (index > 0 and token.start < tokens[index - 1].end)
        if index > first and not continues:
            yield tokens[first:index]
            first = index
    if tokens:
        yield tokens[first:]


def _label(tokens: Sequence[Token], labels: Sequence[str], strategy: str) -> Labelled:
    """Return the label of a word by the strategy."""
    if strategy == "average":
        scores = np.mean([token.scores for token in tokens], axis=0)
    elif strategy == "max":
        scores = max(tokens, key=lambda token: token.scores.max()).scores
    else:
        scores = tokens[0].scores
    best = int(scores.argmax())
    return Labelled(tokens[0].start, tokens[-1].end, labels[best], float(scores[best]))


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
    """Merge several windows' entities: of overlapping ones keep the longest, of equally long ones the best score."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity.start):
        if not kept or not kept[-1].start <= entity.start < kept[-1].end:
            kept.append(entity)
        elif (entity.end - entity.start, entity.score) > (kept[-1].end - kept[-1].start, kept[-1].score):
            kept[-1] = entity
    return kept
