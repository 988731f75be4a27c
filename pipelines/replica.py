"""A replica is one model that answers several units at once. It knows neither Ray nor Parquet.

Where text is generated, an engine stands before the model, with a thread of its own. A unit's requests go into its
inbox together; the unit waits until the last of them is answered, while requests of other units keep the batch full.
"""

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from pipelines.errors import RowError
from pipelines.read import ERROR_FIELD
from pipelines.tasks.base import Task
from pipelines.tokenize import tokenizer_of
from pipelines.units import Unit

log = logging.getLogger(__name__)

RESULT_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int32()),
        pa.field("piece", pa.int32()),
        pa.field("sample", pa.int32()),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("score", pa.float64()),
        pa.field("finish_reason", pa.string()),
        pa.field("values", pa.list_(pa.float32())),  # of a single pass: logits, probabilities, an embedding
        pa.field("indices", pa.list_(pa.int32())),  # of a single pass: what the values belong to
        ERROR_FIELD,
    ]
)


@dataclass(frozen=True)
class Answer:
    """One output of one request, or why there is none: a line of RESULT_SCHEMA."""

    row: int
    piece: int
    sample: int = 0
    token_ids: list[int] | None = None
    score: float | None = None
    finish_reason: str | None = None
    error: dict[str, str] | None = None


@dataclass
class Ticket:
    """What a waiting unit holds: its requests as (row, piece), and the answers so far, keyed by request."""

    requests: list[tuple[int, int]]
    answers: dict[int, list[Answer]] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None

    def answer(self, index: int, answers: list[Answer]) -> None:
        self.answers[index] = answers
        if len(self.answers) == len(self.requests):
            self.done.set()


@dataclass(frozen=True)
class Asked:
    """A request on its way to the engine's thread."""

    ticket: Ticket
    index: int
    token_ids: list[int]
    seed: int


class Replica(Protocol):
    """One model."""

    def answer(self, unit: Unit, requests: pa.Table) -> pa.Table:
        """The answers to a unit's requests in RESULT_SCHEMA, sorted by row, piece and sample; from any thread."""

    def measures(self) -> dict[str, float]:
        """What the model did since this was last asked: seconds busy, tokens. Each second is told once."""


class EngineReplica:
    """Answers units from any number of threads with one engine."""

    def __init__(self, engine: Any, params: Any, seed: int, max_request_tokens: int | None = None) -> None:
        self._engine, self._params, self._seed = engine, params, seed
        self._max_request_tokens = max_request_tokens
        self._inbox: queue.SimpleQueue[list[Asked]] = queue.SimpleQueue()
        self._open: dict[tuple[int, int], Asked] = {}
        self._measured: dict[str, float] = {}
        self._measuring = threading.Lock()
        threading.Thread(target=self._serve, name="engine", daemon=True).start()

    def answer(self, unit: Unit, requests: pa.Table) -> pa.Table:
        """Blocks until all requests are answered.

        Raises: whatever broke the engine; the other units that wait get the same error.
        """
        asked = list(zip(requests["row"].to_pylist(), requests["piece"].to_pylist(), strict=True))
        ticket = Ticket(asked)
        if asked:
            self._inbox.put(
                [
                    Asked(ticket, index, ids, row_seed(self._seed, unit, *asked[index]))
                    for index, ids in enumerate(requests["token_ids"].to_pylist())
                ]
            )
            ticket.done.wait()
        if ticket.failure is not None:
            raise ticket.failure
        answers = [answer for each in ticket.answers.values() for answer in each]
        answers.sort(key=lambda answer: (answer.row, answer.piece, answer.sample))
        return pa.Table.from_pylist([vars(answer) for answer in answers], RESULT_SCHEMA)

    def measures(self) -> dict[str, float]:
        with self._measuring:
            stats = self._engine.stats
            now = {
                "engine_busy_seconds": stats.busy_seconds,
                "engine_prompt_tokens": stats.num_prompt_tokens,
                "engine_padded_tokens": stats.num_padded_prompt_tokens,
                "engine_output_tokens": stats.num_output_tokens,
                "engine_steps": stats.num_steps,
            }
            since = {name: value - self._measured.get(name, 0) for name, value in now.items()}
            self._measured = now
            return since

    def _serve(self) -> None:
        """The engine's thread: take what has come, step, hand out what is finished."""
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
        from models.errors import RequestError

        key = (id(asked.ticket), asked.index)
        self._open[key] = asked
        refused = _too_long(asked.token_ids, self._max_request_tokens)
        try:
            if refused is None:
                self._engine.add(key, asked.token_ids, self._params, seed=asked.seed)
        except RequestError as error:
            refused = RowError("infer", "refused_request", str(error))
        if refused is not None:
            del self._open[key]
            asked.ticket.answer(asked.index, [Answer(*asked.ticket.requests[asked.index], error=vars(refused))])

    def _deliver(self, output: Any) -> None:
        asked = self._open.pop(output.request_id)
        row, piece = asked.ticket.requests[asked.index]
        asked.ticket.answer(
            asked.index,
            [
                Answer(row, piece, sample, list(one.token_ids), float(one.score), one.finish_reason)
                for sample, one in enumerate(output.outputs)
            ],
        )

    def _fail(self, failure: BaseException) -> None:
        """No unit may wait for ever: those in flight get the error now, those that still come get it at once."""
        for asked in self._open.values():
            asked.ticket.failure = failure
            asked.ticket.done.set()
        while True:
            for asked in self._inbox.get():
                asked.ticket.failure = failure
                asked.ticket.done.set()


class SinglePassReplica:
    """Answers units with forwards alone, one unit after the other."""

    def __init__(self, single_pass: Any, task: Task, max_request_tokens: int | None = None) -> None:
        self._pass, self._task, self._max_request_tokens = single_pass, task, max_request_tokens
        self._busy = threading.Lock()
        self._seconds, self._num_tokens, self._num_calls = 0.0, 0, 0

    def answer(self, unit: Unit, requests: pa.Table) -> pa.Table:  # noqa: ARG002
        with self._busy:
            began = time.perf_counter()
            token_ids = requests["token_ids"].to_pylist()
            errors = [self._refusal(ids) for ids in token_ids]
            asked = [number for number, error in enumerate(errors) if error is None]
            answers = self._ask(asked, token_ids) if asked else []
            self._seconds += time.perf_counter() - began
            self._num_tokens += sum(len(token_ids[number]) for number in asked)
            self._num_calls += 1
        tables = [_results_of(requests, [n for n, error in enumerate(errors) if error], error=[e for e in errors if e])]
        return in_order(
            pa.concat_tables([*tables, *(_results_of(requests, own, **columns) for own, columns in answers)])
        )

    def _ask(
        self, numbers: Sequence[int], token_ids: Sequence[Sequence[int]]
    ) -> list[tuple[Sequence[int], Mapping[str, Any]]]:
        """Requests and the columns of their answers, of all at once; where memory ran out on one of them, by halves.

        The single pass halves its batches itself; what comes here is one request that alone is too large.
        """
        from models.single_pass import is_out_of_memory

        try:
            return [(numbers, self._task.ask(self._pass, [token_ids[number] for number in numbers]))]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if len(numbers) == 1:
            message = f"{len(token_ids[numbers[0]])} tokens do not fit into memory. Shorten the text."
            return [(numbers, {"error": [vars(RowError("infer", "out_of_memory", message))]})]
        half = len(numbers) // 2
        return [*self._ask(numbers[:half], token_ids), *self._ask(numbers[half:], token_ids)]

    def _refusal(self, token_ids: list[int]) -> dict[str, str] | None:
        from models.errors import RequestError

        refused = _too_long(token_ids, self._max_request_tokens)
        try:
            if refused is None:
                self._pass.check(token_ids)
        except RequestError as error:
            refused = RowError("infer", "refused_request", str(error))
        return None if refused is None else vars(refused)

    def measures(self) -> dict[str, float]:
        with self._busy:
            since = {
                "engine_busy_seconds": self._seconds,
                "engine_prompt_tokens": self._num_tokens,
                "engine_padded_tokens": self._num_tokens,  # packed: there is no padding
                "engine_output_tokens": 0,
                "engine_steps": self._num_calls,
            }
            self._seconds, self._num_tokens, self._num_calls = 0.0, 0, 0
            return since


def _too_long(token_ids: list[int], limit: int | None) -> RowError | None:
    """Attention's cost grows with the square: a book given to a model without positions would stall its replica."""
    if limit is None or len(token_ids) <= limit:
        return None
    return RowError(
        "infer",
        "too_long",
        f"{len(token_ids)} tokens in one request; engine.max_batch_tokens is {limit}. Raise it, or shorten the text.",
    )


def _results_of(requests: pa.Table, numbers: Sequence[int], **columns: Any) -> pa.Table:
    """RESULT_SCHEMA for some of the requests."""
    own = requests.take(pa.array(numbers, pa.int64()))
    return result_table(row=own["row"], piece=own["piece"], **columns)


def result_table(row: Any, piece: Any, **columns: Any) -> pa.Table:
    """RESULT_SCHEMA with nulls where nothing is given; one sample each."""
    given = {"row": row, "piece": piece, "sample": [0] * len(row), **columns}
    values = [given.get(field.name, pa.nulls(len(row), field.type)) for field in RESULT_SCHEMA]
    return pa.table(values, schema=RESULT_SCHEMA)


def in_order(results: pa.Table) -> pa.Table:
    return results.sort_by([(name, "ascending") for name in ("row", "piece", "sample")])


def row_seed(seed: int, unit: Unit, row: int, piece: int = 0) -> int:
    """A seed that belongs to a request of the input row, wherever and however often it is computed: 63 bits."""
    identity = f"{seed}\n{unit.shard}\n{unit.start + row}\n{piece}".encode()
    return int.from_bytes(hashlib.sha256(identity).digest()[:8], "big") >> 1


def start_replica(
    *,
    task: Task,
    model: str,
    dtype: str,
    device: str,
    num_threads: int,
    max_batch_tokens: int,
    seed: int,
) -> Replica:
    """Load the model as the task needs it; raises ModelError where that is not possible."""
    import torch

    import models

    if num_threads:
        torch.set_num_threads(num_threads)
    loaded = models.load_model(model, architecture=task.architecture, dtype=dtype, device=device)
    limit = max_batch_tokens if loaded.max_positions is None else None
    if not task.generation:
        return SinglePassReplica(models.SinglePass(loaded), task, limit)
    tokenizer = tokenizer_of(model)
    engine = models.Engine(
        loaded,
        max_batch_tokens=max_batch_tokens,
        stop_text=lambda ids: tokenizer.decode_batch([ids])[0],
    )
    return EngineReplica(engine, models.GenerationParams.from_dict(dict(task.generation)), seed, limit)
