"""Lanes: runners that step side by side, each on a thread of its own. They know no queue.

torch cuts each operation over all its threads, which then wait for one another, some hundred times a step. A CPU's
cores are better used by a lane each, with sequences of its own, that waits for nobody. A device has one lane.

    lane 0   | prompts of 64 | step of 64 | step of 64 | prompts of 3, step of 64 |
    lane 1   | prompts of 61      | step of 61  | step of 61  | step of 61  | step of 61  |

`docs/log.md` has what that gives. Lanes share a model, which they only read, and the beginnings that prompts have in
common, which one of them reads for all.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch

from batchloom.models.generation.memory.prefixes import Prefixes
from batchloom.models.generation.requests import Request
from batchloom.models.generation.runner import Runner
from batchloom.models.generation.search.cohort import Done, StopText
from batchloom.models.generation.shared_runner import SharedRunner
from batchloom.models.threads import use_threads

# A lane's steps hold Python's lock for a part of their time, so that many lanes would wait for it.
MOST_LANES = 4


@dataclass(frozen=True)
class Stepped:
    """What one step of a lane did."""

    started: Sequence[Request]
    num_positions: int  # that attention over their prompts computed, padding included
    done: Sequence[Done]


class Lane:
    """A runner, and the step that it is in."""

    def __init__(self, runner: Runner, thread: ThreadPoolExecutor | None) -> None:
        self.runner = runner
        self.step: Future[Stepped] | None = None
        self._thread = thread
        self._num_threads = 0

    def begin(self, started: Sequence[Request], num_threads: int) -> None:
        """One token for all that runs here and for requests that start, with so many of torch's threads."""
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
    """An engine's lanes. Each is idle, or in a step that was begun and not yet taken."""

    def __init__(self, model: Any, stop_text: StopText | None, num_lanes: int | None) -> None:
        self._num_threads = torch.get_num_threads()
        if model.group.followers:
            self._lanes = [Lane(SharedRunner(model, stop_text), None)]
            return
        # A device runs one graph at a time, and captures it on one thread.
        num_lanes = 1 if model.device.type != "cpu" else num_lanes or min(self._num_threads, MOST_LANES)
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
        """The numbers of the lanes that wait for their next step."""
        return [number for number, lane in enumerate(self._lanes) if lane.step is None]

    def begin(self, number: int, started: Sequence[Request], num_busy: int) -> None:
        """Begins the step of an idle lane; `num_busy` lanes share the threads."""
        self._lanes[number].begin(started, max(1, self._num_threads // num_busy))
        if len(self._lanes) > 1:
            torch.set_num_threads(self._num_threads)

    def take(self) -> Iterator[Stepped]:
        """Waits until a step that was begun has ended, and gives what all ended ones did. Raises what one raised."""
        wait([lane.step for lane in self._lanes if lane.step], return_when=FIRST_COMPLETED)
        for lane in self._lanes:
            if lane.step is not None and lane.step.done():
                step, lane.step = lane.step, None
                yield step.result()

    def clear(self) -> None:
        """Waits for all steps and forgets everything that runs, what ended untaken too."""
        wait([lane.step for lane in self._lanes if lane.step])
        for lane in self._lanes:
            lane.step = None
            lane.runner.clear()


@torch.inference_mode()
def _step(runner: Runner, started: Sequence[Request]) -> Stepped:
    num_positions = runner.prefill(started) if started else 0
    return Stepped(started, num_positions, runner.decode())
