"""A replica is one model behind one engine, fed by several units at once. It knows neither Ray nor Parquet.

The engine has a thread of its own. A unit's requests go into the inbox together; the unit waits until the last of them
is answered, while requests of the other units keep the batch full.
"""

import hashlib
import logging
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.errors import RowError
from pipelines.read import ERROR_FIELD
from pipelines.units import Unit

log = logging.getLogger(__name__)

RESULT_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int32()),
        pa.field("sample", pa.int32()),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("score", pa.float64()),
        pa.field("finish_reason", pa.string()),
        ERROR_FIELD,
    ]
)


@dataclass(frozen=True)
class Answer:
    """One output of one request, or why there is none: a line of RESULT_SCHEMA."""

    row: int
    sample: int = 0
    token_ids: list[int] | None = None
    score: float | None = None
    finish_reason: str | None = None
    error: dict[str, str] | None = None


@dataclass
class Ticket:
    """What a waiting unit holds: its open requests and the answers so far, keyed by request."""

    rows: list[int]
    answers: dict[int, list[Answer]] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None

    def answer(self, index: int, answers: list[Answer]) -> None:
        self.answers[index] = answers
        if len(self.answers) == len(self.rows):
            self.done.set()


@dataclass(frozen=True)
class Asked:
    """A request on its way to the engine's thread."""

    ticket: Ticket
    index: int
    token_ids: list[int]
    seed: int


class Replica:
    """Answers units from any number of threads with one engine."""

    def __init__(self, engine: Any, params: Any, seed: int) -> None:
        self._engine, self._params, self._seed = engine, params, seed
        self._inbox: queue.SimpleQueue[list[Asked]] = queue.SimpleQueue()
        self._open: dict[tuple[int, int], Asked] = {}
        self._measured: dict[str, float] = {}
        self._measuring = threading.Lock()
        threading.Thread(target=self._serve, name="engine", daemon=True).start()

    def answer(self, unit: Unit, requests: pa.Table) -> pa.Table:
        """The answers to a unit's requests in RESULT_SCHEMA, sorted by row; blocks until all are there.

        Raises: whatever broke the engine; the other units that wait get the same error.
        """
        rows, token_ids = requests["row"].to_pylist(), requests["token_ids"].to_pylist()
        ticket = Ticket(rows)
        if rows:
            self._inbox.put(
                [
                    Asked(ticket, index, ids, row_seed(self._seed, unit, row))
                    for index, (row, ids) in enumerate(zip(rows, token_ids, strict=True))
                ]
            )
            ticket.done.wait()
        if ticket.failure is not None:
            raise ticket.failure
        answers = [answer for index in sorted(ticket.answers) for answer in ticket.answers[index]]
        answers.sort(key=lambda answer: answer.row)
        return pa.Table.from_pylist([vars(answer) for answer in answers], RESULT_SCHEMA)

    def measures(self) -> dict[str, float]:
        """What the engine did since this was last asked: seconds busy, tokens. Each second is told once."""
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
        try:
            self._engine.add(key, asked.token_ids, self._params, seed=asked.seed)
        except RequestError as error:
            del self._open[key]
            refused = RowError("infer", "refused_request", str(error))
            row = asked.ticket.rows[asked.index]
            asked.ticket.answer(asked.index, [Answer(row, error=vars(refused))])

    def _deliver(self, output: Any) -> None:
        asked = self._open.pop(output.request_id)
        row = asked.ticket.rows[asked.index]
        asked.ticket.answer(
            asked.index,
            [
                Answer(row, sample, list(one.token_ids), float(one.score), one.finish_reason)
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


def row_seed(seed: int, unit: Unit, row: int) -> int:
    """A seed that belongs to the input row, wherever and however often it is computed: 63 bits."""
    identity = f"{seed}\n{unit.shard}\n{unit.start + row}".encode()
    return int.from_bytes(hashlib.sha256(identity).digest()[:8], "big") >> 1


def start_replica(
    *,
    model: str,
    dtype: str,
    device: str,
    num_threads: int,
    max_batch_tokens: int,
    params: Mapping[str, Any],
    seed: int,
) -> Replica:
    """Load the model and start its engine; raises ModelError where either is not possible."""
    import torch

    import models

    if num_threads:
        torch.set_num_threads(num_threads)
    loaded = models.load_model(model, dtype=dtype, device=device)
    engine = models.Engine(loaded, max_batch_tokens=max_batch_tokens)
    return Replica(engine, models.GenerationParams.from_dict(dict(params)), seed)
