"""Scores of given tokens: what is shared is computed once, and log-probabilities are read where they are asked for.

It knows no batch and no rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice, pairwise
from typing import TypeVar, cast

import torch
from torch import Tensor

from batchloom.models.errors import RequestError
from batchloom.models.families.base import LoadedModel
from batchloom.models.layers.shared_prefix import SharedPrefixAttention, shared_positions
from batchloom.models.single_pass.heads import Stack, Translator
from batchloom.models.transfers import queued, to_device

LogProbs = Callable[[Tensor, Tensor], Tensor]
"""Of hidden states [M, D] and one token each [M]: its log-probability, float32 [M] on the CPU."""
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

    @property
    def joined(self) -> list[int]:
        """The source and its targets as a model with one stack packs them, each token once."""
        return [*self.source, *chain(*self.targets)]


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


def score_translations(
    model: LoadedModel, log_probs: LogProbs, ids_N: Tensor, lengths: list[int], questions: Sequence[Question]
) -> list[list[TokenScores]]:
    """Return the scores of each question's targets by an encoder-decoder; `ids_N`: the sources, packed.

    An encoder's output serves all targets of its source: in cross-attention they are one sequence of queries.
    """
    translator, of_each = cast(Translator, model), [question.target_lengths for question in questions]
    target_lengths = [*chain(*of_each)]
    wanted_M = to_device([token for question in questions for token in chain(*question.targets)], ids_N.device)
    shifted_M = translator.shifted(wanted_M, target_lengths)
    hidden_MD = translator.packed_hidden(ids_N, lengths, shifted_M, target_lengths, [sum(own) for own in of_each])
    return _split(log_probs(hidden_MD, wanted_M), of_each)


def score_continuations(
    model: LoadedModel,
    log_probs: LogProbs,
    ids_N: Tensor,
    lengths: list[int],  # noqa: ARG001
    questions: Sequence[Question],
) -> list[list[TokenScores]]:
    """Return the scores of each question's targets by a model with one stack; `ids_N`: sources and targets, packed."""
    prompts, of_each = [len(question.source) for question in questions], [one.target_lengths for one in questions]
    positions_N = queued(shared_positions(prompts, of_each), ids_N.device)
    context = SharedPrefixAttention(prompts, of_each, model.alibi_slopes)
    hidden_ND = cast(Stack, model).decode(ids_N, positions_N, context)
    scored_M, predicting_M = (queued(places, ids_N.device) for places in _places(prompts, of_each))
    return _split(log_probs(hidden_ND[predicting_M], ids_N[scored_M]), of_each)


def _places(prompts: Sequence[int], continuations: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return which packed tokens are scored [M], and which ones' hidden states predict them [M], from lengths."""
    scored: list[Tensor] = []
    predicting: list[Tensor] = []
    start = 0
    for prompt, lengths in zip(prompts, continuations, strict=True):
        first = start + prompt
        for begin, end in pairwise(accumulate(lengths, initial=first)):
            scored.append(torch.arange(begin, end))
            predicting += [torch.tensor([first - 1]), torch.arange(begin, end - 1)]
        start = first + sum(lengths)
    return torch.cat(scored), torch.cat(predicting)


def _split(values: Tensor, lengths: Sequence[Sequence[int]]) -> list[list[TokenScores]]:
    """Return log-probabilities [M] as scores of targets, question by question."""
    parts = iter(values.split([*chain(*lengths)]))
    return [[TokenScores(part) for part in islice(parts, len(own))] for own in lengths]
