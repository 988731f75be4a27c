"""The scheduler decides which requests run, and in which lane. It knows counts of sequences and tokens, no tensor.

Latency does not matter, so the requests with most work start first; shorter ones fill the gaps at the end.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from batchloom.models.generation.requests import Request

# With fewer sequences a lane reads the model's weights for too few rows: it opens only where every lane gets as many.
FEWEST_SEQUENCES = 16


@dataclass
class Load:
    """What runs in one lane."""

    running: set[Request] = field(default_factory=set)
    num_sequences: int = 0
    num_reserved_tokens: int = 0


class Scheduler:
    """Requests wait in order of their work, and run as far as the budgets below allow.

    `max_sequences`: sequences that grow at a time. `max_prompt_tokens`: prompt tokens computed in one step.
    `max_cached_tokens`: tokens whose keys and values fit in memory; a running request's worst case is reserved. These
    are for all lanes together; each has an equal share.
    """

    def __init__(self, max_sequences: int, max_prompt_tokens: int, max_cached_tokens: int, num_lanes: int = 1) -> None:
        self.max_sequences = max_sequences
        self.max_prompt_tokens = max_prompt_tokens
        self.max_cached_tokens = max_cached_tokens
        self.loads = [Load() for _ in range(num_lanes)]
        self._before_halving: tuple[int, int] | None = (
            None  # the budgets before out-of-memory halvings that no finished request has confirmed
        )
        self._waiting: list[tuple[int, int, Request]] = []
        self._num_waiting_sequences = 0
        self._arrivals = count()

    @property
    def running(self) -> set[Request]:
        return set().union(*(load.running for load in self.loads))

    @property
    def num_running_sequences(self) -> int:
        return sum(load.num_sequences for load in self.loads)

    @property
    def num_reserved_tokens(self) -> int:
        return sum(load.num_reserved_tokens for load in self.loads)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + sum(len(load.running) for load in self.loads)

    @property
    def num_open(self) -> int:
        """Lanes in which requests may start: as many as can have FEWEST_SEQUENCES each, at least one."""
        num_sequences = min(self.num_running_sequences + self._num_waiting_sequences, self.max_sequences)
        return max(1, min(len(self.loads), num_sequences // FEWEST_SEQUENCES))

    def add(self, request: Request) -> None:
        """Queue a request; among requests of equal work the first added is started first."""
        heapq.heappush(self._waiting, (-request.max_cached_tokens, next(self._arrivals), request))
        self._num_waiting_sequences += request.num_sequences

    def admit(self, lanes: Sequence[int] = (0,)) -> dict[int, list[Request]]:
        """Start the requests that fit now, and return them by lane. One that exceeds every budget runs alone."""
        admitted: dict[int, list[Request]] = {lane: [] for lane in lanes}
        num_prompt_tokens = dict.fromkeys(lanes, 0)
        while self._waiting:
            request = self._waiting[0][-1]
            num_tokens = request.num_prompt_tokens
            open_lanes = [
                lane
                for lane in lanes
                if self._fits(request, lane)
                and (not admitted[lane] or num_prompt_tokens[lane] + num_tokens <= self._share(self.max_prompt_tokens))
            ]
            if not open_lanes:
                break
            lane = min(open_lanes, key=lambda lane: self.loads[lane].num_reserved_tokens)
            heapq.heappop(self._waiting)
            self._num_waiting_sequences -= request.num_sequences
            self._start(request, self.loads[lane])
            admitted[lane].append(request)
            num_prompt_tokens[lane] += num_tokens
        return admitted

    def release(self, request: Request) -> None:
        """Free all that a finished request reserved; that it finished confirms the budgets."""
        self._before_halving = None
        self._stop(request)

    def halve(self) -> None:
        """After an out-of-memory error: queue everything that runs again, and halve the budgets."""
        self._before_halving = self._before_halving or (self.max_prompt_tokens, self.max_cached_tokens)
        self.max_cached_tokens = max(1, self.num_reserved_tokens // 2)
        self.max_prompt_tokens = max(1, self.max_prompt_tokens // 2)
        for request in sorted(self.running, key=lambda one: -one.max_cached_tokens):
            self._stop(request)
            self.add(request)

    def give_up(self) -> Request:
        """Remove and return the one running request, which does not fit alone, and undo the halvings that it caused."""
        (request,) = self.running
        self._stop(request)
        if self._before_halving is not None:
            self.max_prompt_tokens, self.max_cached_tokens = self._before_halving
        self._before_halving = None
        return request

    def _stop(self, request: Request) -> None:
        load = next(load for load in self.loads if request in load.running)
        load.running.remove(request)
        load.num_sequences -= request.num_sequences
        load.num_reserved_tokens -= request.max_cached_tokens

    def _start(self, request: Request, load: Load) -> None:
        load.running.add(request)
        load.num_sequences += request.num_sequences
        load.num_reserved_tokens += request.max_cached_tokens

    def _fits(self, request: Request, lane: int) -> bool:
        """Return whether a request fits into the budgets, and into a lane's share of them and of the work."""
        if not self.num_running_sequences:
            return True
        num_sequences = self.num_running_sequences + request.num_sequences
        num_tokens = self.num_reserved_tokens + request.max_cached_tokens
        if lane >= self.num_open or num_sequences > self.max_sequences or num_tokens > self.max_cached_tokens:
            return False
        load = self.loads[lane]
        num_unfinished = self.num_running_sequences + self._num_waiting_sequences
        return not load.running or (
            load.num_sequences < self._share(num_unfinished)
            and load.num_sequences + request.num_sequences <= self._share(self.max_sequences)
            and load.num_reserved_tokens + request.max_cached_tokens <= self._share(self.max_cached_tokens)
        )

    def _share(self, number: int) -> int:
        return -(-number // self.num_open)
