"""Batches of rows under a token budget, longest first, computed side by side on a CPU's cores. It knows no tensor.

A batch that runs out of memory is halved and tried again, and the budget with it; a row that has no room beside what
the other workers compute is tried once more when it is the only one.
"""

import logging
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TypeVar

import torch

from batchloom.models.device import is_out_of_memory
from batchloom.models.threads import side_by_side

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Batches:
    """What `compute` gives for rows, batch after batch. `max_tokens`: the budget, lowered where memory runs out.

    `num_workers` batches are computed at a time, on `num_threads` of torch's threads together.
    """

    def __init__(self, max_tokens: int, num_workers: int, num_threads: int) -> None:
        self.max_tokens = max_tokens
        self.num_workers, self._num_threads = num_workers, num_threads

    def compute(
        self, costs: Sequence[int], compute: Callable[[list[int]], list[Result]], may_halve: bool = True
    ) -> list[Result]:
        """One result for each row, in their order; `costs` are the rows' tokens.

        Raises what `compute` raises: want of memory only for a row alone, or where halving is somebody else's.
        """
        results: dict[int, Result] = {}
        num_workers = min(self.num_workers, len(costs))
        # Work for all: where there is little, batches are small.
        queue = _Queue(costs, most_tokens=-(-sum(costs) // max(1, num_workers)))
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
        """Memory ran out at so many tokens."""
        self.max_tokens = max(1, min(self.max_tokens, num_tokens // 2))
        logger.warning("out of memory at %d tokens; going on with %d a batch", num_tokens, self.max_tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _try(
        self, compute: Callable[[list[int]], list[Result]], rows: list[int], may_fail: bool, queue: "_Queue"
    ) -> list[Result] | None:
        """The answers, or None where memory ran out: the handler is left before the next try, as it keeps tensors."""
        try:
            return compute(rows)
        except BaseException as error:
            is_memory = isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error)
            if not (is_memory and may_fail):
                queue.close()
                raise
            return None


class _Queue:
    """Rows that wait, longest first; several workers take from it."""

    def __init__(self, costs: Sequence[int], most_tokens: int) -> None:
        self._costs, self._most_tokens = costs, most_tokens
        self._waiting = sorted(range(len(costs)), key=self._order)
        self._changing = Lock()

    def take(self, budget: int) -> list[int]:
        """The first rows that fit a budget together; one at least, where there are any."""
        with self._changing:
            num_rows, num_tokens = 0, 0
            for row in self._waiting:
                num_tokens += self._costs[row]
                if num_rows and num_tokens > min(budget, self._most_tokens):
                    break
                num_rows += 1
            rows, self._waiting = self._waiting[:num_rows], self._waiting[num_rows:]
            return rows

    def give_back(self, rows: Sequence[int]) -> None:
        with self._changing:
            self._waiting = sorted([*rows, *self._waiting], key=self._order)

    def close(self) -> None:
        """Nobody takes any more."""
        with self._changing:
            self._waiting = []

    def _order(self, row: int) -> tuple[int, int]:
        return -self._costs[row], row
