"""Heads without a decode loop: classes, spans, embeddings and scores of thousands of token lists. It knows no text.

Sequences are cut into buckets (buckets.py), each computed as one batch. A batch is packed, so no padded token is ever
multiplied, and neighbours in it have nearly equal lengths, so that attention pads little. On a CPU each core computes
batches of its own. A batch that runs out of memory is halved and tried again, and the budget with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from batchloom.models.errors import RequestError, UnsupportedModelError
from batchloom.models.families.base import LoadedModel
from batchloom.models.generation.search.vocabulary import vocabulary_of
from batchloom.models.layers.attention import PackedAttention, Plan
from batchloom.models.single_pass.all_ranks import Sequences, on_all_ranks
from batchloom.models.single_pass.batches import Batches
from batchloom.models.single_pass.buckets import best_batch_tokens
from batchloom.models.single_pass.heads import (
    SequenceClassifier,
    TokenClassifier,
    TokenPredictor,
)
from batchloom.models.single_pass.scoring import (
    TokenScores,
    by_row,
    questions_of,
    score_continuations,
    score_translations,
)
from batchloom.models.single_pass.state_outputs import StackName, StateOutput, StateOutputs
from batchloom.models.single_pass.state_passes import StatePasses
from batchloom.models.single_pass.states import outputs_of
from batchloom.models.single_pass.streams import Streams
from batchloom.models.transfers import to_device

Result = TypeVar("Result")

# Positions whose logits over the vocabulary are made at a time: [1024, 50265] in float32 is 206 MB.
HEAD_POSITIONS = 1024
DEVICE_WORKERS = 2


@dataclass(frozen=True)
class SinglePassStats:
    """What single passes computed since they were made; batches that ran out of memory are not counted."""

    num_batches: int = 0
    num_tokens: int = 0
    num_positions: int = 0  # that self-attention over these tokens computed (the encoder's, if any), padding included

    def plus(self, num_tokens: int, num_positions: int) -> "SinglePassStats":
        """Return the sums with one batch more."""
        return SinglePassStats(self.num_batches + 1, self.num_tokens + num_tokens, self.num_positions + num_positions)


def num_workers_of(model: LoadedModel) -> int:
    """Return how many batches of a model are computed side by side.

    A CPU's core computes batches of its own. On a GPU one is prepared while another is computed. Several ranks would
    mix up their collectives.
    """
    if model.group.size > 1:
        return 1
    return torch.get_num_threads() if model.device.type == "cpu" else DEVICE_WORKERS


class SinglePass(StatePasses):
    """One model's forwards over many token lists. Results come in the order of the input, on the CPU, in float32.

    `max_batch_tokens`: tokens of a batch; by default what is fastest on the model's device. `num_workers`: batches
    computed at a time by a call; by default one a core on a CPU, two on a GPU. Callers on several threads pass 1.
    """

    def __init__(self, model: LoadedModel, max_batch_tokens: int | None = None, num_workers: int | None = None) -> None:
        self.model = model
        self.stats = SinglePassStats()
        self._counting = Lock()
        self._vocabulary = vocabulary_of(model)
        # Logits held at once are shared by all that may compute beside this call, unless products would be too small.
        self._num_positions = min(HEAD_POSITIONS, max(128, HEAD_POSITIONS // num_workers_of(model)))
        self._batches = Batches(
            max_batch_tokens or best_batch_tokens(model.device.type),
            num_workers=num_workers or num_workers_of(model),
            num_threads=torch.get_num_threads(),
        )
        self._streams = Streams(model.device, num_workers_of(model))

    @property
    def max_batch_tokens(self) -> int:
        """Tokens of a batch at most; less than at first where memory ran out."""
        return self._batches.max_tokens

    def check(self, token_ids: Sequence[int]) -> None:
        """Raises: RequestError where the model cannot read a token list; others can be computed without it."""
        self.model.check_tokens(token_ids)

    def check_targets(self, token_ids: Sequence[int], targets: Sequences) -> None:
        """Raises: RequestError where the model cannot read a token list, or one of the targets behind it."""
        self.check(token_ids)
        positions = None if self.model.is_encoder_decoder else self.model.max_positions
        for number, target in enumerate(targets):
            is_long = target and positions is not None and len(token_ids) + len(target) > positions
            self._check_as(f"Target {number}", self.check, [*token_ids, *target] if is_long else target)

    @on_all_ranks
    def classify(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Return logits [sequences, L] of a sequence classifier.

        Raises: UnsupportedModelError where the model is none; RequestError where it cannot read a sequence.
        """
        self._needs("class_logits", "a sequence classifier")
        model = cast(SequenceClassifier, self.model)

        def compute(ids_N: Tensor, lengths: list[int]) -> list[Tensor]:
            return list(model.class_logits(ids_N, lengths).float().cpu())

        return _stack(self._run(sequences, compute), self.model.config.num_labels)

    @on_all_ranks
    def token_logits(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return logits [T, L] for each sequence: classes of tokens, or columns start and end of an answer.

        Raises: UnsupportedModelError where the model has no such head; RequestError where it cannot read a sequence.
        """
        self._needs("token_logits", "a token classifier or a question answerer")
        model = cast(TokenClassifier, self.model)

        def compute(ids_N: Tensor, lengths: list[int]) -> list[Tensor]:
            logits_NL = model.token_logits(model.packed_hidden(ids_N, lengths))
            return list(logits_NL.float().cpu().split(lengths))

        return self._run(sequences, compute)

    def spans(self, sequences: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        """Return start and end logits [T] for each sequence of a question answerer. Raises: as token_logits."""
        return [(logits_T2[:, 0], logits_T2[:, 1]) for logits_T2 in self.token_logits(sequences)]

    @on_all_ranks
    def states(
        self,
        sequences: Sequence[Sequence[int]],
        outputs: Sequence[StateOutput],
        layer: int = -1,
        stack: StackName | None = None,
        normalize: bool = False,
    ) -> list[dict[StateOutput, Tensor]]:
        """Return several outputs for each sequence by one forward: StatePasses has the arguments and errors."""
        asked = StateOutputs.of(self.model.config, self.model.is_encoder_decoder, outputs, layer, stack)
        return self._run(sequences, partial(outputs_of, self.model, asked, normalize))

    @on_all_ranks
    def score(self, sequences: Sequences, targets: Sequences | None = None) -> list[TokenScores]:
        """Return log-probabilities of given tokens.

        With targets, all tokens of each are scored given its sequence: the decoder's behind its start token, or of a
        model with one stack those that continue the sequence. Without, a model with one stack scores each sequence's
        tokens after its first.

        Raises: UnsupportedModelError where the model has no vocabulary head; RequestError where an encoder-decoder has
        no targets, or where the model cannot read a sequence or a target.
        """
        if targets is not None:
            return [scores for (scores,) in self._score_targets(sequences, [[target] for target in targets])]
        self._needs("logits", "a language model")
        if self.model.is_encoder_decoder:
            raise RequestError("An encoder-decoder model scores targets given sources: pass one target a sequence.")
        model = cast(TokenPredictor, self.model)

        def compute(ids_N: Tensor, lengths: list[int]) -> list[TokenScores]:
            hidden_ND = model.packed_hidden(ids_N, lengths)
            before_M = to_device(_all_but_last(lengths), ids_N.device)
            log_probs = self._log_probs(hidden_ND[before_M], ids_N[before_M + 1])
            return [TokenScores(part) for part in log_probs.split([length - 1 for length in lengths])]

        return self._run(sequences, compute)

    @on_all_ranks
    def score_targets(self, sequences: Sequences, targets: Sequence[Sequences]) -> list[list[TokenScores]]:
        """Return log-probabilities of several targets of each sequence, as `score` does of one.

        What is computed of a sequence serves all its targets, and those of equal sequences. Raises: as `score`, and
        RequestError where a sequence has no target.
        """
        return self._score_targets(sequences, targets)

    @on_all_ranks
    def top_tokens(
        self, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], top_k: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the likeliest tokens at positions of each sequence: (ids, probabilities), [positions, top_k] both.

        Logits are made for these positions only. In BART, position p of the output stands for p of the input, which is
        what its denoising training means by a mask.

        Raises: UnsupportedModelError where the model has no vocabulary head; RequestError where positions are outside
        their sequence or the model cannot read a sequence.
        """
        self._needs("logits", "a language model")
        model = cast(TokenPredictor, self.model)
        if len(positions) != len(sequences):
            raise RequestError(
                f"{len(sequences)} sequences came with {len(positions)} lists of positions; give one for each."
            )
        for row, (sequence, wanted) in enumerate(zip(sequences, positions, strict=True)):
            if outside := [position for position in wanted if not 0 <= position < len(sequence)]:
                raise RequestError(f"Sequence {row} has no positions {outside}: it has {len(sequence)} tokens.")

        def compute(ids_N: Tensor, lengths: list[int], asked: list[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
            starts = _starts(lengths)
            rows = [start + position for start, wanted in zip(starts, asked, strict=True) for position in wanted]
            hidden_MD = model.packed_hidden(ids_N, lengths)[to_device(rows, ids_N.device)]
            found = [
                self._likeliest(model.local_logits(part_MD), top_k) for part_MD in hidden_MD.split(self._num_positions)
            ]
            ids, probabilities = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
            counts = [len(wanted) for wanted in asked]
            return list(zip(ids.split(counts), probabilities.split(counts), strict=True))

        return self._run(sequences, compute, positions)

    def _score_targets(self, sequences: Sequences, targets: Sequence[Sequences]) -> list[list[TokenScores]]:
        self._needs("logits", "a language model")
        questions = questions_of(sequences, targets, self.max_batch_tokens)
        for row, (sequence, own) in enumerate(zip(sequences, targets, strict=True)):
            self._check_as(f"Sequence {row}", self.check_targets, sequence, own)
        costs = [question.num_tokens for question in questions]
        if self.model.is_encoder_decoder:
            asked, score = [question.source for question in questions], score_translations
        else:
            asked, score = [question.joined for question in questions], score_continuations
        compute = partial(score, self.model, self._log_probs)
        scores: list[list[TokenScores]] = self._compute(asked, costs, compute, questions)
        return by_row(questions, scores, [len(own) for own in targets])

    def _likeliest(self, logits_MV: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """Return tokens and their probabilities, best first: [M, top_k] both."""
        value_MK, token_MK = self._vocabulary.best(logits_MV, top_k)
        return token_MK, (value_MK.float() - self._vocabulary.log_normalizer(logits_MV)[:, None]).exp()

    def _log_probs(self, hidden_MD: Tensor, wanted_M: Tensor) -> Tensor:
        """Return the log-probability of one token a row, float32 [M] on the CPU, without holding [M, V]."""
        model = cast(TokenPredictor, self.model)
        parts = []
        num = self._num_positions
        for part_MD, wanted in zip(hidden_MD.split(num), wanted_M.split(num), strict=True):
            logits_MV = model.local_logits(part_MD)
            value_M = self._vocabulary.find(logits_MV, wanted[:, None])[:, 0].float()
            normalizer_M = self._vocabulary.log_normalizer(logits_MV)
            # Of a banned token -inf is right; beside an infinite logit it would be that of any token.
            parts.append((value_M - normalizer_M).masked_fill_(~normalizer_M.isfinite(), torch.nan).cpu())
        return torch.cat(parts) if parts else torch.empty(0)

    def _needs(self, method: str, what: str) -> None:
        """Raises: UnsupportedModelError where the model has another head."""
        if not hasattr(self.model, method):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} is not {what}. Load another checkpoint, or pass another architecture."
            )

    def _check_as(self, what: str, check: Callable[..., None], *arguments: Sequence[int] | Sequences) -> None:
        try:
            check(*arguments)
        except RequestError as error:
            raise RequestError(f"{what}: {error}") from error

    def _run(
        self,
        sequences: Sequences,
        compute: Callable[..., list[Result]],
        partners: Sequences | None = None,
    ) -> list[Result]:
        """Call compute(packed ids, lengths[, partners]) on batches; `partners` are second lists, batched along."""
        for row, sequence in enumerate(sequences):
            self._check_as(f"Sequence {row}", self.check, sequence)
        costs = list(map(len, sequences))
        if partners is not None:
            costs = [cost + len(partner) for cost, partner in zip(costs, partners, strict=True)]
        return self._compute(sequences, costs, compute, partners)

    def _compute(
        self,
        sequences: Sequences,
        costs: Sequence[int],
        compute: Callable[..., list[Result]],
        partners: Sequence[Any] | None,
    ) -> list[Result]:
        lengths = [len(sequence) for sequence in sequences]

        @torch.inference_mode()
        def answer(rows: list[int]) -> list[Result]:
            extra = () if partners is None else ([partners[row] for row in rows],)
            batch_lengths = [lengths[row] for row in rows]
            with self._streams.one():
                ids_N = to_device([token for row in rows for token in sequences[row]], self.model.device)
                results = compute(ids_N, batch_lengths, *extra)
            num_positions = self._attention(batch_lengths).num_positions
            with self._counting:
                self.stats = self.stats.plus(len(ids_N), num_positions)
            return results

        return self._batches.compute(costs, answer, may_halve=self.model.group.size == 1)

    def _attention(self, lengths: list[int]) -> Plan:
        """Return how the model's self-attention goes over its input: the encoder's, where there is one."""
        context = PackedAttention(lengths, not self.model.is_encoder_decoder, self.model.alibi_slopes)
        return context.plan(self.model.device, self.model.dtype, self.model.head_dim)


def _starts(lengths: Sequence[int]) -> list[int]:
    """Return where each sequence begins among the packed tokens: 3, 2 -> [0, 3]."""
    starts, start = [], 0
    for length in lengths:
        starts.append(start)
        start += length
    return starts


def _all_but_last(lengths: Sequence[int]) -> list[int]:
    """Return the places of all packed tokens but each sequence's last, which predicts none: 3, 2 -> [0, 1, 3]."""
    starts = _starts(lengths)
    return [start + place for start, length in zip(starts, lengths, strict=True) for place in range(length - 1)]


def _stack(rows: list[Tensor], width: int) -> Tensor:
    return torch.stack(rows) if rows else torch.empty(0, width)
