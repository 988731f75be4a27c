"""A model that answers with forwards alone, fed by several units at once. It knows neither Ray nor Parquet.

A unit's buckets, as Tokenize made them, are the batches that are computed: they wait in one queue, the oldest unit's
first, and workers take one at a time, so that no core idles at a unit's end. A batch holds rows of one unit: the rows
beside it change the last bits of a row's answer (docs/log.md), and a repeated unit must give equal bytes.
"""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchloom.pipelines.errors import RowError
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.replicas.probe import Agreement
from batchloom.pipelines.replicas.results import in_order, not_finite, result_table, too_long
from batchloom.pipelines.replicas.turns import Turns
from batchloom.pipelines.tasks.base import TARGET_LENGTHS, Task, cells_of
from batchloom.pipelines.telemetry.activity import Activity

if TYPE_CHECKING:
    from batchloom.models import SinglePass


@dataclass
class Ticket:
    """What a waiting unit holds: its requests, how many of its buckets are open, and results so far."""

    requests: pa.Table
    questions: "RequestTokens"
    num_open: int
    results: list[pa.Table] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None
    changing: threading.Lock = field(default_factory=threading.Lock)

    def close(self, results: Sequence[pa.Table]) -> None:
        """Take the results of one bucket."""
        with self.changing:
            self.results += results
            self.num_open -= 1
            if self.num_open == 0:
                self.done.set()

    def fail(self, failure: BaseException) -> None:
        """End the unit with an error; its buckets that still wait are skipped."""
        with self.changing:
            self.failure = self.failure or failure
            self.done.set()


class RequestTokens:
    """What a unit's requests ask, by their numbers. Tokens are arrays until they are asked for: a list takes ten times
    as much, and only a batch's is needed at a time."""

    def __init__(self, requests: pa.Table) -> None:
        self._ids_of = cells_of(requests["token_ids"])
        self.have_targets = TARGET_LENGTHS.name in requests.column_names
        self._lengths_of = cells_of(requests[TARGET_LENGTHS.name]) if self.have_targets else None

    def token_ids(self, number: int) -> list[int]:
        """Return all tokens of a request."""
        ids: list[int] = self._ids_of(number).tolist()
        return ids

    def with_targets(self, number: int) -> tuple[list[int], list[list[int]]]:
        """Return a request's source and its targets."""
        assert self._lengths_of is not None
        ids, lengths = self.token_ids(number), self._lengths_of(number).tolist()
        ends = accumulate(lengths, initial=len(ids) - sum(lengths))
        return ids[: len(ids) - sum(lengths)], [ids[start:end] for start, end in pairwise(ends)]


Bucket = tuple[Ticket, list[int]]
"""Requests of a ticket, by their number."""


class SinglePassReplica:
    """Answers units from any number of threads with `num_workers` workers.

    `single_pass` must compute what it is given as one batch: it has no budget until memory runs out, and no workers.
    """

    def __init__(
        self,
        single_pass: "SinglePass",
        task: Task,
        max_request_tokens: int | None = None,
        num_workers: int = 1,
        agreement: Agreement | None = None,
    ) -> None:
        """`agreement`: as Replica has it."""
        import torch

        from batchloom.models.threads import start_workers

        self.agreement = agreement
        self._pass, self._task, self._max_request_tokens = single_pass, task, max_request_tokens
        self._waiting: queue.SimpleQueue[Bucket] = queue.SimpleQueue()
        self._adding = threading.Lock()  # a unit's buckets stand together
        self._turns = Turns()
        self._num_workers = num_workers
        start_workers(self._serve, num_workers, torch.get_num_threads(), "single pass")

    def answer(self, unit: Unit, requests: pa.Table) -> pa.Table:  # noqa: ARG002
        """Block until all requests are answered. Raises: whatever broke one of the unit's batches."""
        questions = RequestTokens(requests)
        errors = [self._refusal(questions, number) for number in range(len(requests))]
        refused = [number for number, error in enumerate(errors) if error]
        buckets = list(_buckets(requests["bucket"].to_pylist(), errors))
        ticket = Ticket(requests, questions, len(buckets))
        with self._adding:
            for bucket in buckets:
                self._waiting.put((ticket, bucket))
        if buckets:
            ticket.done.wait()
        if ticket.failure is not None:
            raise ticket.failure
        of_refused = _results_of(requests, refused, error=[errors[number] for number in refused])
        return in_order(pa.concat_tables([of_refused, *ticket.results]))

    def activity(self) -> Activity:
        """Return what was computed so far, and the seconds in which a batch was."""
        stats = self._pass.stats
        return Activity(
            busy_seconds=self._turns.busy_seconds(),
            num_steps=stats.num_batches,
            num_prompt_tokens=stats.num_tokens,
            num_padded_tokens=stats.num_positions,
        )

    def _serve(self) -> None:
        """Compute buckets for ever; a failure ends the unit that it belongs to, and no other."""
        while True:
            ticket, numbers = self._waiting.get()
            if ticket.failure is not None:
                continue
            try:
                answers = self._compute(numbers, ticket.questions)
                ticket.close([_results_of(ticket.requests, own, **columns) for own, columns in answers])
            except BaseException as failure:
                ticket.fail(failure)

    def _compute(
        self, numbers: Sequence[int], questions: RequestTokens
    ) -> list[tuple[Sequence[int], Mapping[str, Any]]]:
        """Return requests and the columns of their answers: all at once, or by halves where memory ran out on one.

        The single pass halves its batches itself: what comes here is one request that alone is too large. It is tried
        once more while no other worker computes.
        """
        try:
            with self._turns.beside_others():
                return [(numbers, self._checked(self._ask(numbers, questions)))]
        except (RuntimeError, MemoryError) as error:
            _raise_unless_memory(error)
        if len(numbers) > 1:
            half = len(numbers) // 2
            return [*self._compute(numbers[:half], questions), *self._compute(numbers[half:], questions)]
        if self._num_workers > 1:
            try:
                with self._turns.alone():
                    return [(numbers, self._checked(self._ask(numbers, questions)))]
            except (RuntimeError, MemoryError) as error:
                _raise_unless_memory(error)
        if questions.have_targets and (values := self._in_halves(*questions.with_targets(numbers[0]))) is not None:
            return [(numbers, self._checked({"values": pa.array([values], pa.list_(pa.float32()))}))]
        advice = "Shorten the text, or its longest target." if questions.have_targets else "Shorten the text."
        message = f"{len(questions.token_ids(numbers[0]))} tokens do not fit into memory. {advice}"
        return [(numbers, {"error": [vars(RowError("infer", "out_of_memory", message))]})]

    def _ask(self, numbers: Sequence[int], questions: RequestTokens) -> Mapping[str, Any]:
        """Return the columns of the answers."""
        if questions.have_targets:
            sources, targets = zip(*map(questions.with_targets, numbers), strict=True)
            return self._task.ask_targets(self._pass, sources, targets)
        return self._task.ask(self._pass, list(map(questions.token_ids, numbers)))

    def _in_halves(self, source: list[int], targets: Sequence[list[int]]) -> list[float | None] | None:
        """Return the values of a request whose targets do not fit into memory together, half of them at a time, or half
        of those; None where one alone does not fit."""
        if len(targets) == 1:
            return None
        values: list[float | None] = []
        for part in (targets[: len(targets) // 2], targets[len(targets) // 2 :]):
            found = self._tried(source, part)
            if found is None:
                found = self._in_halves(source, part)
            if found is None:
                return None
            values += found
        return values

    def _tried(self, source: list[int], targets: Sequence[list[int]]) -> list[float | None] | None:
        """Return the values of one request while no other worker computes, or None where memory ran out."""
        try:
            with self._turns.alone():
                values: list[list[float | None]]
                values = self._task.ask_targets(self._pass, [source], [targets])["values"].to_pylist()
                return values[0]
        except (RuntimeError, MemoryError) as error:
            _raise_unless_memory(error)
        return None

    def _checked(self, answers: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the columns of answers, with an error where a value is NaN or infinite."""
        from batchloom.models.not_finite import not_finite as message

        is_odd = np.logical_or.reduce([not_finite(column) for column in answers.values()])
        if not is_odd.any():
            return answers
        names = ", ".join(field.name for field in self._task.output_fields())
        error = vars(
            RowError("infer", "not_finite", message(f"The model's values for {names}", self._pass.model.dtype))
        )
        return {**answers, "error": [error if odd else None for odd in is_odd.tolist()]}

    def _refusal(self, questions: RequestTokens, number: int) -> dict[str, str] | None:
        from batchloom.models.errors import RequestError

        try:
            if questions.have_targets:
                source, targets = questions.with_targets(number)
                refused = too_long([*source, *max(targets, key=len)], self._max_request_tokens)
                if refused is None:
                    self._pass.check_targets(source, targets)
            else:
                token_ids = questions.token_ids(number)
                refused = too_long(token_ids, self._max_request_tokens)
                if refused is None:
                    self._pass.check(token_ids)
        except RequestError as error:
            refused = RowError("infer", "refused_request", str(error))
        return None if refused is None else vars(refused)


def _buckets(bucket_of: Sequence[int], errors: Sequence[object]) -> Iterator[list[int]]:
    """Yield the numbers of each bucket's requests, without those that are refused."""
    for _, members in groupby(range(len(bucket_of)), key=lambda number: bucket_of[number]):
        if left := [number for number in members if errors[number] is None]:
            yield left


def _raise_unless_memory(error: Exception) -> None:
    """Return where memory ran out: a caller goes on outside its handler, as the error holds the batch's tensors."""
    from batchloom.models.device import is_out_of_memory

    if not is_out_of_memory(error):
        raise error


def _results_of(requests: pa.Table, numbers: Sequence[int], **columns: Any) -> pa.Table:
    """Return RESULT_SCHEMA for some of the requests."""
    own = requests.take(pa.array(numbers, pa.int64()))
    return result_table(row=own["row"], piece=own["piece"], **columns)
