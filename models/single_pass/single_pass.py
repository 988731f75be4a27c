"""Heads without a decode loop: classes, spans, embeddings and scores of thousands of token lists. It knows no text.

Sequences are ordered longest first and cut into batches under a token budget; a batch is packed, so no padded token is
ever multiplied, and neighbours in it have nearly equal lengths, which attention likes. On a CPU each core takes batches
of its own. A batch that runs out of memory is halved and tried again, and the budget with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from batchloom.models.device import is_out_of_memory
from batchloom.models.errors import RequestError, UnsupportedModelError
from batchloom.models.families.base import LoadedModel
from batchloom.models.generation.search.vocabulary import vocabulary_of
from batchloom.models.ranks.calls import Call
from batchloom.models.single_pass.batches import Batches

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
Pooling = Literal["mean", "cls", "last"]
Sequences = Sequence[Sequence[int]]

# Logits over the vocabulary are made for so many positions at a time: [1024, 50265] in float32 is 206 MB.
HEAD_POSITIONS = 1024
# Beyond a few thousand tokens a CPU only loses its caches; an accelerator needs more to be busy.
CPU_BATCH_TOKENS = 2048
DEVICE_BATCH_TOKENS = 32768


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities of a sequence's tokens, each given those before it."""

    log_probs: Tensor  # float32 [scored tokens]

    @property
    def total(self) -> float:
        """The log-likelihood of the scored tokens together, in nats."""
        return float(self.log_probs.double().sum())


def on_all_ranks(method: Callable[Concatenate["SinglePass", Sequences, Arguments], Result]) -> Callable[..., Result]:
    """A method of SinglePass that every rank of its model runs; the first one's result counts.

    Where memory runs out on one of several ranks, all begin again with half the budget: the longest come first, so that
    this happens early. When the longest ran alone, it is the one without room.
    """

    @wraps(method)
    def call(
        self: "SinglePass", sequences: Sequences, *arguments: Arguments.args, **keywords: Arguments.kwargs
    ) -> Result:
        while True:
            told = (method.__name__, self.max_batch_tokens, (sequences, *arguments), keywords)
            try:
                with self.model.group.collective_call(Call.SINGLE_PASS, *told):
                    return method(self, sequences, *arguments, **keywords)
            except (RuntimeError, MemoryError) as error:
                is_alone = self.max_batch_tokens <= max(map(len, sequences), default=0)
                if self.model.group.followers is None or is_alone or not is_out_of_memory(error):
                    raise
            self._batches.halve(min(self.max_batch_tokens, sum(map(len, sequences))))

    return call


class SinglePass:
    """One model's forwards over many token lists. Results come in the order of the input, on the CPU, in float32."""

    def __init__(self, model: LoadedModel, max_batch_tokens: int | None = None) -> None:
        self.model: Any = model  # which methods it has depends on its head; each method here asks
        self._vocabulary = vocabulary_of(model)
        on_cpu = model.device.type == "cpu"
        num_threads = torch.get_num_threads()
        self._batches = Batches(
            max_batch_tokens or (CPU_BATCH_TOKENS if on_cpu else DEVICE_BATCH_TOKENS),
            # A core takes batches of its own; ranks would mix up their collectives.
            num_workers=num_threads if on_cpu and model.group.size == 1 else 1,
            num_threads=num_threads,
        )

    @property
    def max_batch_tokens(self) -> int:
        """Tokens of a batch at most; less than at first where memory ran out."""
        return self._batches.max_tokens

    def check(self, token_ids: Sequence[int]) -> None:
        """Raises RequestError where the model cannot read a token list; the others can go on without it."""
        self.model.check_tokens(token_ids)

    @on_all_ranks
    def classify(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Logits [sequences, L] of a sequence classifier."""
        self._needs("class_logits", "a sequence classifier")

        def compute(ids_N: Tensor, lengths: list[int]) -> list[Tensor]:
            return list(self.model.class_logits(ids_N, lengths).float().cpu())

        return _stack(self._run(sequences, compute), self.model.config.num_labels)

    @on_all_ranks
    def token_logits(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logits [T, L] for each sequence: classes of tokens, or columns start and end of an answer."""
        self._needs("token_logits", "a token classifier or a question answerer")

        def compute(ids_N: Tensor, lengths: list[int]) -> list[Tensor]:
            logits_NL = self.model.token_logits(self.model.packed_hidden(ids_N, lengths))
            return list(logits_NL.float().cpu().split(lengths))

        return self._run(sequences, compute)

    def spans(self, sequences: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        """Start and end logits [T] for each sequence of a question answerer."""
        return [(logits_T2[:, 0], logits_T2[:, 1]) for logits_T2 in self.token_logits(sequences)]

    @on_all_ranks
    def embed(self, sequences: Sequence[Sequence[int]], pooling: Pooling = "mean", normalize: bool = False) -> Tensor:
        """One vector [D] for each sequence, out of the last hidden states: [sequences, D].

        These are the decoder's for BART (as the reference's feature extraction gives) and BLOOM, and the encoder's for
        the Blenderbots, whose decoders demand a reply. `normalize` scales each to length one.
        """
        if pooling not in ("mean", "cls", "last"):
            raise RequestError(f"pooling = {pooling!r} is not one we have. Use 'mean', 'cls' or 'last'.")

        def compute(ids_N: Tensor, lengths: list[int]) -> list[Tensor]:
            hidden_ND = self._hidden(ids_N, lengths).float()
            pooled_BD = _pool(hidden_ND, lengths, pooling)
            if normalize:
                pooled_BD = torch.nn.functional.normalize(pooled_BD, dim=-1)
            return list(pooled_BD.cpu())

        return _stack(self._run(sequences, compute), self.model.hidden_size)

    @on_all_ranks
    def score(
        self, sequences: Sequence[Sequence[int]], targets: Sequence[Sequence[int]] | None = None
    ) -> list[TokenScores]:
        """Log-probabilities of tokens that are there.

        Models with one stack score each sequence's tokens after its first. Encoder-decoder models score `targets` given
        the sequences as source, all of their tokens, the decoder starting from its start token.
        """
        self._needs("logits", "a language model")
        if self.model.is_encoder_decoder:
            if targets is None or len(targets) != len(sequences):
                raise RequestError("An encoder-decoder model scores targets given sources: pass one target a sequence.")
            self._check_each("Target", targets)
            return self._run(sequences, self._score_targets, targets)
        if targets is not None:
            raise RequestError("A model with one stack scores the sequences themselves: leave targets out.")

        def compute(ids_N: Tensor, lengths: list[int]) -> list[TokenScores]:
            hidden_ND = self.model.packed_hidden(ids_N, lengths)
            is_first_N = _first_tokens(ids_N, lengths)
            # The hidden state before a token predicts it: rows before a first token predict another sequence's.
            asks_N = ~is_first_N.roll(-1)
            log_probs = self._log_probs(hidden_ND[asks_N], ids_N[~is_first_N])
            return [TokenScores(part) for part in log_probs.split([length - 1 for length in lengths])]

        return self._run(sequences, compute)

    @on_all_ranks
    def top_tokens(
        self, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], top_k: int
    ) -> list[tuple[Tensor, Tensor]]:
        """The likeliest tokens at some positions of each sequence: (ids, probabilities), [positions, top_k] both.

        Logits are made for these positions and no others. In BART, position p of the output stands for p of the input,
        which is what its denoising training means by a mask.
        """
        self._needs("logits", "a language model")
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
            hidden_MD = self.model.packed_hidden(ids_N, lengths)[torch.tensor(rows, device=ids_N.device)]
            found = [self._likeliest(part_MD, top_k) for part_MD in hidden_MD.split(self._num_positions)]
            ids, probabilities = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
            counts = [len(wanted) for wanted in asked]
            return list(zip(ids.split(counts), probabilities.split(counts), strict=True))

        return self._run(sequences, compute, positions)

    def _score_targets(self, ids_N: Tensor, lengths: list[int], targets: list[Sequence[int]]) -> list[TokenScores]:
        target_lengths = [len(target) for target in targets]
        wanted_M = torch.tensor([token for target in targets for token in target], device=ids_N.device)
        shifted_M = self.model.shifted(wanted_M, target_lengths)
        hidden_MD = self.model.packed_hidden(ids_N, lengths, shifted_M, target_lengths)
        return [TokenScores(part) for part in self._log_probs(hidden_MD, wanted_M).split(target_lengths)]

    def _likeliest(self, hidden_MD: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """Tokens and their probabilities, best first: [M, top_k] both."""
        logits_MV = self.model.local_logits(hidden_MD)
        value_MK, token_MK = self._vocabulary.best(logits_MV, top_k)
        return token_MK, (value_MK.float() - self._vocabulary.log_normalizer(logits_MV)[:, None]).exp()

    def _log_probs(self, hidden_MD: Tensor, wanted_M: Tensor) -> Tensor:
        """The log-probability of one token a row, float32 [M] on the CPU; never holds [M, V]."""
        parts = []
        num = self._num_positions
        for part_MD, wanted in zip(hidden_MD.split(num), wanted_M.split(num), strict=True):
            logits_MV = self.model.local_logits(part_MD)
            value_M = self._vocabulary.find(logits_MV, wanted[:, None])[:, 0].float()
            parts.append((value_M - self._vocabulary.log_normalizer(logits_MV)).cpu())
        return torch.cat(parts) if parts else torch.empty(0)

    def _hidden(self, ids_N: Tensor, lengths: list[int]) -> Tensor:
        if self.model.is_encoder_decoder and not self.model.shifts_input:
            encoded_ND: Tensor = self.model.packed_encoded(ids_N, lengths)
            return encoded_ND
        hidden_ND: Tensor = self.model.packed_hidden(ids_N, lengths)
        return hidden_ND

    @property
    def _num_positions(self) -> int:
        """Whose logits are held at once: HEAD_POSITIONS of all workers, unless products would be small and slow."""
        return min(HEAD_POSITIONS, max(128, HEAD_POSITIONS // self._batches.num_workers))

    def _needs(self, method: str, what: str) -> None:
        if not hasattr(self.model, method):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} is not {what}. Load another checkpoint, or pass another architecture."
            )

    def _check_each(self, what: str, sequences: Sequences) -> None:
        for row, sequence in enumerate(sequences):
            try:
                self.check(sequence)
            except RequestError as error:
                raise RequestError(f"{what} {row}: {error}") from error

    def _run(
        self,
        sequences: Sequence[Sequence[int]],
        compute: Callable[..., list[Result]],
        partners: Sequence[Sequence[int]] | None = None,
    ) -> list[Result]:
        """compute(packed ids, lengths[, partners]) over batches; `partners` are second lists, batched along."""
        self._check_each("Sequence", sequences)
        lengths = [len(sequence) for sequence in sequences]
        costs = lengths if partners is None else [n + len(p) for n, p in zip(lengths, partners, strict=True)]

        @torch.inference_mode()
        def answer(rows: list[int]) -> list[Result]:
            ids_N = torch.tensor([token for row in rows for token in sequences[row]], device=self.model.device)
            extra = () if partners is None else ([partners[row] for row in rows],)
            return compute(ids_N, [lengths[row] for row in rows], *extra)

        return self._batches.compute(costs, answer, may_halve=self.model.group.size == 1)


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where each sequence begins among the packed tokens: 3, 2 -> [0, 3]."""
    starts, start = [], 0
    for length in lengths:
        starts.append(start)
        start += length
    return starts


def _first_tokens(ids_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """True at each sequence's first token: bool [N]."""
    marks_N = torch.zeros_like(ids_N, dtype=torch.bool)
    marks_N[torch.tensor(_starts(lengths), device=ids_N.device)] = True
    return marks_N


def _pool(hidden_ND: Tensor, lengths: list[int], pooling: Pooling) -> Tensor:
    if pooling == "mean":
        return torch.stack([part.mean(0) for part in hidden_ND.split(lengths)])
    starts = torch.tensor(_starts(lengths), device=hidden_ND.device)
    ends = starts + torch.tensor(lengths, device=hidden_ND.device) - 1
    return hidden_ND[starts if pooling == "cls" else ends]


def _stack(rows: list[Tensor], width: int) -> Tensor:
    return torch.stack(rows) if rows else torch.empty(0, width)
