"""Lanes: runners that step concurrently, each on its own thread. They know no queue.

torch splits each operation over all its threads, which synchronize after it, some hundred times a step. A CPU's cores
are better used by one lane each, with sequences of its own, that never waits for the others. An accelerator has one
lane.

    lane 0   | prompts of 64 | step of 64 | step of 64 | prompts of 3, step of 64 |
    lane 1   | prompts of 61      | step of 61  | step of 61  | step of 61  | step of 61  |

docs/log.md has measurements. Lanes share the model, which they only read, and the cached prefixes of prompts, each of
which one lane computes for all.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch

from batchloom.models.generation.memory.prefixes import Prefixes
from batchloom.models.generation.model import GenerativeModel
from batchloom.models.generation.requests import Request
from batchloom.models.generation.runner import Runner
from batchloom.models.generation.search.cohort import Done, StopText
from batchloom.models.generation.shared_runner import SharedRunner
from batchloom.models.threads import use_threads

# A step holds Python's global lock for part of its time, so more lanes would wait for it.
MAX_LANES = 4


@dataclass(frozen=True)
class Stepped:
    """The result of one step of a lane."""

    started: Sequence[Request]
    num_positions: int  # computed by attention over their prompts, padding included
    done: Sequence[Done]


class Lane:
    """A runner, and its step in progress."""

    def __init__(self, runner: Runner, thread: ThreadPoolExecutor | None) -> None:
        self.runner = runner
        self.step: Future[Stepped] | None = None
        self._thread = thread
        self._num_threads = 0

    def begin(self, started: Sequence[Request], num_threads: int) -> None:
        """Begin a step (prefill `started`, then decode one token a sequence) on `num_threads` of torch's threads."""
        if self._thread is None:
            step: Future[Stepped] = Future()
            try:
                step.set_result(_step(self.runner, started))
            except Exception as error:
                step.set_exception(error)
            self.step = step
            return
        if num_threads != self._num_threads:
            self._thread.submit(use_threads, num_threads).result()
            self._num_threads = num_threads
        self.step = self._thread.submit(_step, self.runner, started)


class Lanes:
    """An engine's lanes. Each is idle, or has a step that was begun and whose result was not taken yet."""

    def __init__(self, model: GenerativeModel, stop_text: StopText | None, num_lanes: int | None) -> None:
        self._num_threads = torch.get_num_threads()
        if model.group.followers:
            self._lanes = [Lane(SharedRunner(model, stop_text), None)]
            return
        # An accelerator runs one graph at a time, and captures it on one thread.
        num_lanes = 1 if model.device.type != "cpu" else num_lanes or min(self._num_threads, MAX_LANES)
        prefixes = Prefixes()
        threads = [ThreadPoolExecutor(1, "lane") for _ in range(num_lanes)] if num_lanes > 1 else [None]
        self._lanes = [Lane(Runner(model, stop_text, prefixes), thread) for thread in threads]

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def runners(self) -> list[Runner]:
        return [lane.runner for lane in self._lanes]

    @property
    def idle(self) -> list[int]:
        """The numbers of the lanes without a step in progress."""
        return [number for number, lane in enumerate(self._lanes) if lane.step is None]

    def begin(self, number: int, started: Sequence[Request], num_busy: int) -> None:
        """Begin the step of an idle lane; `num_busy` lanes share torch's threads."""
        self._lanes[number].begin(started, max(1, self._num_threads // num_busy))
        if len(self._lanes) > 1:
            torch.set_num_threads(self._num_threads)

    def take(self) -> Iterator[Stepped]:
        """Wait until a step has ended, and yield the results of all that have.

        Raises: whatever a step raised, out-of-memory errors among them.
        """
        wait([lane.step for lane in self._lanes if lane.step], return_when=FIRST_COMPLETED)
        for lane in self._lanes:
            if lane.step is not None and lane.step.done():
                step, lane.step = lane.step, None
                yield step.result()

    def clear(self) -> None:
        """Wait for all steps, then drop their results and everything that runs."""
        wait([lane.step for lane in self._lanes if lane.step])
        for lane in self._lanes:
            lane.step = None
            lane.runner.clear()


@torch.inference_mode()
def _step(runner: Runner, started: Sequence[Request]) -> Stepped:
    num_positions = runner.prefill(started) if started else 0
    return Stepped(started, num_positions, runner.decode())
