"""Scores of given tokens: what belongs together, and where its log-probabilities are read. It computes no model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice, pairwise
from typing import TypeVar

import torch
from torch import Tensor

from batchloom.models.errors import RequestError

Item = TypeVar("Item")


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities of a sequence's tokens, each given those before it."""

    log_probs: Tensor  # float32 [scored tokens]

    @property
    def total(self) -> float:
        """The log-likelihood of the scored tokens together, in nats."""
        return float(self.log_probs.double().sum())


@dataclass
class Question:
    """A source, and the targets that are scored given it: those of all rows with this source."""

    source: Sequence[int]
    num_tokens: int
    rows: list[int] = field(default_factory=list)
    targets: list[Sequence[int]] = field(default_factory=list)
    """Row after row."""

    def add(self, row: int, targets: Sequence[Sequence[int]]) -> None:
        self.rows.append(row)
        self.targets.extend(targets)
        self.num_tokens += sum(map(len, targets))

    @property
    def target_lengths(self) -> list[int]:
        return [len(target) for target in self.targets]


def questions_of(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[Sequence[int]]], max_tokens: int
) -> list[Question]:
    """Return the distinct sources with their targets; one with more than `max_tokens` tokens is there again.

    Raises: RequestError where there is not one list of targets for each source, or an empty one.
    """
    if len(targets) != len(sources):
        raise RequestError(f"{len(sources)} sequences came with {len(targets)} lists of targets; give one for each.")
    questions: list[Question] = []
    latest: dict[tuple[int, ...], Question] = {}
    for row, (source, own) in enumerate(zip(sources, targets, strict=True)):
        if not own:
            raise RequestError(f"Sequence {row} has no target: give one at least.")
        question = latest.get(tuple(source))
        if question is None or question.num_tokens + sum(map(len, own)) > max_tokens:
            question = latest[tuple(source)] = Question(source, len(source))
            questions.append(question)
        question.add(row, own)
    return questions


def by_row(
    questions: Sequence[Question], answers: Sequence[Sequence[Item]], num_targets: Sequence[int]
) -> list[list[Item]]:
    """Return for each row its share of its question's answers, one a target."""
    answers_of: list[list[Item]] = [[] for _ in num_targets]
    for question, own in zip(questions, answers, strict=True):
        left = iter(own)
        for row in question.rows:
            answers_of[row] = list(islice(left, num_targets[row]))
    return answers_of


@dataclass(frozen=True)
class Continuations:
    """Packed prompts, each followed by its continuations."""

    prompt_lengths: list[int]
    lengths: list[list[int]]
    """Of each prompt's continuations."""

    def places(self) -> tuple[Tensor, Tensor]:
        """Return which packed tokens are scored [M], and which ones' hidden states predict them [M]."""
        scored: list[Tensor] = []
        predicting: list[Tensor] = []
        start = 0
        for prompt, lengths in zip(self.prompt_lengths, self.lengths, strict=True):
            first = start + prompt
            for begin, end in pairwise(accumulate(lengths, initial=first)):
                scored.append(torch.arange(begin, end))
                predicting += [torch.tensor([first - 1]), torch.arange(begin, end - 1)]
            start = first + sum(lengths)
        return torch.cat(scored), torch.cat(predicting)


def split_by(values: Tensor, lengths: Sequence[Sequence[int]]) -> list[list[TokenScores]]:
    """Return log-probabilities [M] as scores of targets, source by source."""
    parts = iter(values.split([length for own in lengths for length in own]))
    return [[TokenScores(part) for part in islice(parts, len(own))] for own in lengths]
