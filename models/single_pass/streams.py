"""Streams of a GPU, one for each batch that is computed side by side. They know no model."""

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import torch


class Streams:
    """A GPU's streams: a batch on its own waits for nothing of another's."""

    def __init__(self, device: torch.device, num_streams: int) -> None:
        self._free: SimpleQueue[torch.cuda.Stream] = SimpleQueue()
        self._is_needed = device.type == "cuda"
        if self._is_needed:
            torch.cuda.synchronize(device)  # the weights are there
            for _ in range(num_streams):
                self._free.put(torch.cuda.Stream(device))

    @contextmanager
    def one(self) -> Iterator[None]:
        """Let this thread use a stream that no other uses; it waits for one."""
        if not self._is_needed:
            yield
            return
        stream = self._free.get()
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            self._free.put(stream)
