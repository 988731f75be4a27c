"""A follower holds one rank's part of a model and does what the first rank does. It decides nothing.

Started by models/followers.py with the number of its socket; `serve` runs the calls it is told, in their order.
"""

import contextlib
import os
import pickle
import queue
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from models.errors import DeviceError, ModelError
from models.families.base import LoadedModel
from models.generation.device_memory import max_cached_tokens
from models.generation.runner import Runner
from models.generation.sequence import Request
from models.loading import load_part, resolve_device
from models.parallel import Collectives, TensorParallel
from models.single_pass import SinglePass


class Follower:
    """One rank's model, and the runners and passes that the first rank has of it."""

    def __init__(self, model: LoadedModel, messages: "queue.SimpleQueue[bytes]") -> None:
        self.model = model
        self._messages = messages
        self._runners: dict[int, Runner] = {}

    def serve(self) -> None:
        """Does what comes, for ever."""
        while True:
            call, arguments = self._next()
            # The first rank raises the same for a request that cannot be served, and tells the caller.
            with contextlib.suppress(ModelError), torch.inference_mode():
                getattr(self, call)(*arguments)

    def forward(self, arguments: Sequence[Any], keywords: dict[str, Any]) -> None:
        self.model(*arguments, **keywords)

    def single_pass(
        self, method: str, max_batch_tokens: int, arguments: Sequence[Any], keywords: dict[str, Any]
    ) -> None:
        getattr(SinglePass(self.model, max_batch_tokens), method)(*arguments, **keywords)

    def max_cached_tokens(self) -> None:
        max_cached_tokens(self.model)

    def make_runner(self, number: int, looks_for_text: bool) -> None:
        # Only the first rank has the tokenizer: it sends each text that it looks at.
        self._runners[number] = Runner(self.model, (lambda _: self._next()) if looks_for_text else None)

    def prefill(self, number: int, requests: Sequence[Request]) -> None:
        self._runners[number].prefill(requests)

    def decode(self, number: int) -> None:
        self._runners[number].decode()

    def clear(self, number: int) -> None:
        self._runners[number].clear()

    def forget_runner(self, number: int) -> None:
        del self._runners[number]

    def _next(self) -> Any:
        return pickle.loads(self._messages.get())


def main(file_descriptor: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches a whole terminal; the first rank decides
    connection = Connection(file_descriptor)
    settings = connection.recv()
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, messages, settings["folder"]), daemon=True).start()
    rank, size = settings["rank"], settings["size"]
    try:
        torch.set_num_threads(settings["num_threads"])
        place = resolve_device(settings["device"], TensorParallel(rank=rank, size=size))
        connection.send("awake")
        group = TensorParallel(rank=rank, size=size, collectives=Collectives(settings["folder"], rank, size, place))
        model = load_part(settings["uri"], settings["architecture"], settings["dtype"], place, group)
        connection.send("ready")
        Follower(model, messages).serve()
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        connection.send(DeviceError(f"Rank {rank} of {size} failed: {type(error).__name__}: {error}"))
    os._exit(1)  # the group's threads would hold up an orderly end


def _read(connection: Connection, messages: "queue.SimpleQueue[bytes]", folder: str) -> None:
    """Takes messages as they come, so that the end of the first rank's process is noticed whatever runs here."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            messages.put(connection.recv_bytes())
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
