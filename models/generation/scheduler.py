"""The scheduler decides which requests run. It knows counts of sequences and tokens, no tensor and no model.

There is no latency to protect, so the longest work starts first and the short fills the gaps that it leaves at the end.
"""

import heapq
from itertools import count

from models.generation.sequence import Request


class Scheduler:
    """Requests wait in order of their work, and run while sequences, prompt tokens and cache tokens are to be had.

    `max_sequences`: sequences that grow at a time. `max_prompt_tokens`: prompt tokens computed in one step.
    `max_cached_tokens`: tokens whose keys and values fit in memory; a running request's worst case is reserved.
    """

    def __init__(self, max_sequences: int, max_prompt_tokens: int, max_cached_tokens: int) -> None:
        self.max_sequences = max_sequences
        self.max_prompt_tokens = max_prompt_tokens
        self.max_cached_tokens = max_cached_tokens
        self.num_running_sequences = 0
        self.num_reserved_tokens = 0
        self.running: set[Request] = set()
        self._before_halving: tuple[int, int] | None = None  # budgets that no finished request has replaced yet
        self._waiting: list[tuple[int, int, Request]] = []
        self._arrivals = count()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + len(self.running)

    def add(self, request: Request) -> None:
        """Lets a request wait; among equal work the first come is first served."""
        heapq.heappush(self._waiting, (-request.max_cached_tokens, next(self._arrivals), request))

    def admit(self) -> list[Request]:
        """The requests that start now. One that is larger than all there is still runs, alone."""
        admitted: list[Request] = []
        num_prompt_tokens = 0
        while self._waiting:
            request = self._waiting[0][-1]
            num_prompt_tokens += len(request.prompt_ids)
            if (admitted and num_prompt_tokens > self.max_prompt_tokens) or not self._fits(request):
                break
            heapq.heappop(self._waiting)
            self._start(request)
            admitted.append(request)
        return admitted

    def release(self, request: Request) -> None:
        """Gives back all that a finished request held; it shows that the budgets are right."""
        self._before_halving = None
        self._stop(request)

    def halve(self) -> None:
        """Memory ran out: everything that runs waits again, and from now on half of it runs at a time."""
        self._before_halving = self._before_halving or (self.max_prompt_tokens, self.max_cached_tokens)
        self.max_cached_tokens = max(1, self.num_reserved_tokens // 2)
        self.max_prompt_tokens = max(1, self.max_prompt_tokens // 2)
        for request in sorted(self.running, key=lambda one: -one.max_cached_tokens):
            self._stop(request)
            self.add(request)

    def give_up(self) -> Request:
        """The one running request had no room, though alone; halvings that led to it say nothing about the others."""
        (request,) = self.running
        self._stop(request)
        if self._before_halving is not None:
            self.max_prompt_tokens, self.max_cached_tokens = self._before_halving
        self._before_halving = None
        return request

    def _stop(self, request: Request) -> None:
        self.running.remove(request)
        self.num_running_sequences -= request.num_sequences
        self.num_reserved_tokens -= request.max_cached_tokens

    def _start(self, request: Request) -> None:
        self.running.add(request)
        self.num_running_sequences += request.num_sequences
        self.num_reserved_tokens += request.max_cached_tokens

    def _fits(self, request: Request) -> bool:
        if not self.running:
            return True
        return (
            self.num_running_sequences + request.num_sequences <= self.max_sequences
            and self.num_reserved_tokens + request.max_cached_tokens <= self.max_cached_tokens
        )
