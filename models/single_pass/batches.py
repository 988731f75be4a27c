"""Batches of rows under a token budget, computed side by side on a CPU's cores. It knows no tensor.

A batch that runs out of memory is halved and tried again, and the budget with it; a row that has no room beside what
the other workers compute is tried once more when it is the only one.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import TypeVar

import torch

from batchloom.models.device import is_out_of_memory
from batchloom.models.single_pass.buckets import cut_into_buckets
from batchloom.models.threads import side_by_side

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Batches:
    """Computes rows batch by batch. `max_tokens`: the budget of a batch, lowered where memory runs out.

    `num_workers` batches are computed at a time, on `num_threads` of torch's threads together.
    """

    def __init__(self, max_tokens: int, num_workers: int, num_threads: int) -> None:
        self.max_tokens = max_tokens
        self.num_workers, self._num_threads = num_workers, num_threads

    def compute(
        self, costs: Sequence[int], compute: Callable[[list[int]], list[Result]], may_halve: bool = True
    ) -> list[Result]:
        """Return one result for each row, in the order of the rows; `costs` are the rows' tokens.

        Raises: whatever `compute` raises. An out-of-memory error only where a row has no room alone, or where
        `may_halve` is false because the caller halves.
        """
        results: dict[int, Result] = {}
        num_workers = min(self.num_workers, len(costs))
        # Work for every worker: where there is little, batches are small.
        share = -(-sum(costs) // max(1, num_workers))
        queue = _Queue(costs, cut_into_buckets(costs, min(self.max_tokens, share)))
        crowded_out: list[int] = []

        def work() -> None:
            while rows := queue.take(self.max_tokens):
                answers = self._try(compute, rows, may_halve and (len(rows) > 1 or num_workers > 1), queue)
                if answers is not None:
                    results.update(zip(rows, answers, strict=True))
                elif len(rows) == 1:
                    crowded_out.extend(rows)
                else:
                    self.halve(sum(costs[row] for row in rows))
                    queue.give_back(rows)

        side_by_side(work, num_workers, self._num_threads)
        for row in sorted(crowded_out):
            results[row] = compute([row])[0]
        return [results[row] for row in range(len(costs))]

    def halve(self, num_tokens: int) -> None:
        """Lower the budget: memory ran out at `num_tokens` tokens."""
        self.max_tokens = max(1, min(self.max_tokens, num_tokens // 2))
        logger.warning("out of memory at %d tokens; going on with %d a batch", num_tokens, self.max_tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _try(
        self, compute: Callable[[list[int]], list[Result]], rows: list[int], may_fail: bool, queue: "_Queue"
    ) -> list[Result] | None:
        """Return the answers, or None where memory ran out: the exception holds tensors until its handler is left."""
        try:
            return compute(rows)
        except BaseException as error:
            is_memory = isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error)
            if not (is_memory and may_fail):
                queue.close()
                raise
            return None


class _Queue:
    """Batches that wait, in order; several workers take from it."""

    def __init__(self, costs: Sequence[int], batches: Iterable[list[int]]) -> None:
        self._costs, self._waiting = costs, deque(batches)
        self._changing = Lock()

    def take(self, budget: int) -> list[int]:
        """Return the next batch, or as many of its first rows as fit a lowered budget, one at least; [] at the end."""
        with self._changing:
            if not self._waiting:
                return []
            rows = self._waiting.popleft()
            num_rows = num_tokens = 0
            for row in rows:
                num_tokens += self._costs[row]
                if num_rows and num_tokens > budget:
                    self._waiting.appendleft(rows[num_rows:])
                    break
                num_rows += 1
            return rows[:num_rows]

    def give_back(self, rows: list[int]) -> None:
        """Put a batch that was taken to the front again."""
        with self._changing:
            self._waiting.appendleft(rows)

    def close(self) -> None:
        """Drop what waits, so that no worker goes on."""
        with self._changing:
            self._waiting.clear()
