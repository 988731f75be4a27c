"""A model behind an engine, fed by several units at once. It knows neither Ray nor Parquet.

The engine has a thread of its own. A unit's requests go into the inbox together, in the order of their buckets; the
engine's scheduler merges those of all units in flight, longest work first, so that it prefills a bucket's neighbours
together. The unit waits until its last request is answered, while requests of the other units keep the batch full.
"""

import hashlib
import logging
import math
import queue
import threading
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from batchloom.pipelines.errors import RowError
from batchloom.pipelines.fields import ANSWER_PREFIX
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.replicas.copies import is_copy, marks_of
from batchloom.pipelines.replicas.probe import Agreement
from batchloom.pipelines.replicas.results import RESULT_SCHEMA, in_order, too_long
from batchloom.pipelines.telemetry.activity import Activity

if TYPE_CHECKING:
    from batchloom.models import Engine, GenerationParams, RequestOutput

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """One output of one request, or the error in its place: a row of RESULT_SCHEMA."""

    row: int
    piece: int
    sample: int = 0
    token_ids: list[int] | None = None
    answer_prefix: list[int] | None = None
    score: float | None = None
    finish_reason: str | None = None
    is_copy: bool | None = None
    values: list[float] | None = None
    error: dict[str, str] | None = None


@dataclass
class Ticket:
    """What a waiting unit holds: its requests as (row, piece), and the answers so far, keyed by request."""

    requests: list[tuple[int, int]]
    answers: dict[int, list[Answer]] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None

    def answer(self, index: int, answers: list[Answer]) -> None:
        """Take the answers to one request; the last one ends the wait."""
        self.answers[index] = answers
        if len(self.answers) == len(self.requests):
            self.done.set()


@dataclass(frozen=True)
class Asked:
    """A request on its way to the engine's thread."""

    ticket: Ticket
    index: int
    token_ids: list[int]
    answer_prefix: list[int]
    seed: int


class EngineReplica:
    """Answers units from any number of threads with one engine."""

    def __init__(
        self,
        engine: "Engine",
        params: "GenerationParams",
        seed: int,
        max_request_tokens: int | None = None,
        log_probs: bool = False,
        agreement: Agreement | None = None,
    ) -> None:
        """`log_probs`: answers come with those of their tokens. `agreement`: as Replica has it."""
        self.agreement = agreement
        self._engine, self._params, self._seed = engine, params, seed
        self._max_request_tokens, self._log_probs = max_request_tokens, log_probs
        self._marks = marks_of(params)
        self._inbox: queue.SimpleQueue[list[Asked]] = queue.SimpleQueue()
        self._open: dict[Hashable, Asked] = {}
        threading.Thread(target=self._serve, name="engine", daemon=True).start()

    def answer(self, unit: Unit, requests: pa.Table) -> pa.Table:
        """Block until all requests are answered.

        Raises: whatever broke the engine; the other units that wait get the same error.
        """
        asked = list(zip(requests["row"].to_pylist(), requests["piece"].to_pylist(), strict=True))
        ticket = Ticket(asked)
        if asked:
            self._inbox.put(
                [
                    Asked(ticket, index, ids, prefix, row_seed(self._seed, unit, *asked[index]))
                    for index, (ids, prefix) in enumerate(_tokens(requests))
                ]
            )
            ticket.done.wait()
        if ticket.failure is not None:
            raise ticket.failure
        answers = [vars(answer) for each in ticket.answers.values() for answer in each]
        return in_order(pa.Table.from_pylist(answers, RESULT_SCHEMA))

    def activity(self) -> Activity:
        """Return what the engine did so far, and holds now."""
        stats, load = self._engine.stats, self._engine.load
        return Activity(
            busy_seconds=stats.busy_seconds,
            num_steps=stats.num_steps,
            num_prompt_tokens=stats.num_prompt_tokens,
            num_padded_tokens=stats.num_padded_prompt_tokens,
            num_output_tokens=stats.num_output_tokens,
            num_running_sequences=load.num_sequences,
            num_waiting_requests=load.num_waiting,
            num_cached_tokens=load.num_cached_tokens,
            max_cached_tokens=load.max_cached_tokens,
            num_blocks=load.num_blocks,
            max_blocks=load.max_blocks,
        )

    def _serve(self) -> None:
        """Run the engine's thread: take what has come, step, hand out what is finished."""
        try:
            while True:
                self._take()
                for output in self._engine.step():
                    self._deliver(output)
        except BaseException as failure:
            log.exception("the engine broke; units in flight fail with it")
            self._fail(failure)

    def _take(self) -> None:
        """Move the inbox into the engine; wait only where there is nothing to do."""
        while not self._inbox.empty() or not self._engine.num_unfinished:
            for asked in self._inbox.get():
                self._add(asked)

    def _add(self, asked: Asked) -> None:
        from batchloom.models.errors import RequestError

        key = (id(asked.ticket), asked.index)
        self._open[key] = asked
        refused = too_long([*asked.token_ids, *asked.answer_prefix], self._max_request_tokens)
        try:
            if refused is None:
                self._engine.add(key, asked.token_ids, self._params, asked.seed, asked.answer_prefix)
        except RequestError as error:
            refused = RowError("infer", "refused_request", str(error))
        if refused is not None:
            del self._open[key]
            asked.ticket.answer(asked.index, [Answer(*asked.ticket.requests[asked.index], error=vars(refused))])

    def _deliver(self, output: "RequestOutput") -> None:
        asked = self._open.pop(output.request_id)
        row, piece = asked.ticket.requests[asked.index]
        if output.error is not None:
            error: RowError | None = RowError("infer", output.error.kind, output.error.message)
        else:
            error = _not_finite([one.score for one in output.outputs])
        if error is not None:
            asked.ticket.answer(asked.index, [Answer(row, piece, error=vars(error))])
            return
        asked.ticket.answer(
            asked.index,
            [
                Answer(
                    row,
                    piece,
                    sample,
                    list(one.token_ids),
                    asked.answer_prefix or None,
                    float(one.score),
                    one.finish_reason,
                    is_copy(asked.token_ids, one.token_ids, self._marks, asked.answer_prefix),
                    list(one.log_probs) if self._log_probs else None,
                )
                for sample, one in enumerate(output.outputs)
            ],
        )

    def _fail(self, failure: BaseException) -> None:
        """Fail every unit, so that none waits for ever: those in flight now, later ones as soon as they come."""
        for asked in self._open.values():
            asked.ticket.failure = failure
            asked.ticket.done.set()
        while True:
            for asked in self._inbox.get():
                asked.ticket.failure = failure
                asked.ticket.done.set()


def _tokens(requests: pa.Table) -> Iterator[tuple[list[int], list[int]]]:
    """Yield each request's prompt, and what its answer begins with."""
    prompts = requests["token_ids"].to_pylist()
    has_prefixes = ANSWER_PREFIX.name in requests.column_names
    prefixes = requests[ANSWER_PREFIX.name].to_pylist() if has_prefixes else [None] * len(prompts)
    yield from ((prompt, prefix or []) for prompt, prefix in zip(prompts, prefixes, strict=True))


def row_seed(seed: int, unit: Unit, row: int, piece: int = 0) -> int:
    """Return a request's seed of 63 bits, the same wherever and however often the request is computed."""
    shard, number = unit.row(row)
    identity = f"{seed}\n{shard}\n{number}\n{piece}".encode()
    return int.from_bytes(hashlib.sha256(identity).digest()[:8], "big") >> 1


def _not_finite(scores: Sequence[float]) -> RowError | None:
    """Return the error of answers with a score that is not finite, though the model's logits were."""
    odd = [score for score in scores if not math.isfinite(score)]
    if not odd:
        return None
    return RowError(
        "infer",
        "not_finite",
        f"The answer's score is {odd[0]}: options banned every token at some step, or a length_penalty is too large. "
        "Ban fewer tokens, or lower it.",
    )
