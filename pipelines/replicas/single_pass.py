"""A model that answers with forwards alone, one unit after the other. It knows neither Ray nor Parquet."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from batchloom.pipelines.errors import RowError
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.replicas.results import in_order, result_table, too_long
from batchloom.pipelines.tasks.base import Task


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
        from batchloom.models.device import is_out_of_memory

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
        from batchloom.models.errors import RequestError

        refused = too_long(token_ids, self._max_request_tokens)
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


def _results_of(requests: pa.Table, numbers: Sequence[int], **columns: Any) -> pa.Table:
    """RESULT_SCHEMA for some of the requests."""
    own = requests.take(pa.array(numbers, pa.int64()))
    return result_table(row=own["row"], piece=own["piece"], **columns)
