"""A follower holds one rank's part of a model and does what the first rank does. It decides nothing.

Started by models/ranks/processes.py with the number of its socket; `serve` runs the calls it is told, in their order.
Where a rank cannot go on with a call, all leave it: the group of one is closed, the others notice, and all wait for the
first rank to call them together again.
"""

import contextlib
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from batchloom.models.checkpoints.loading import load_part, resolve_device
from batchloom.models.device import is_out_of_memory, max_cached_tokens
from batchloom.models.errors import DeviceError, ModelError
from batchloom.models.families.base import LoadedModel
from batchloom.models.generation.model import language_model
from batchloom.models.generation.requests import Request
from batchloom.models.generation.runner import Runner
from batchloom.models.ranks.connection import own_address
from batchloom.models.ranks.group import SINGLE, Collectives, OutOfStepError, TensorParallel, open_store
from batchloom.models.ranks.processes import MEET_AGAIN, NoMemory
from batchloom.models.single_pass.single_pass import SinglePass


class Follower:
    """One rank's model, and the runners and passes that the first rank has of it."""

    def __init__(self, model: LoadedModel, connection: Connection, messages: "queue.SimpleQueue[bytes]") -> None:
        self.model = model
        self._connection = connection
        self._messages = messages
        self._runners: dict[int, Runner] = {}
        self._left: set[int] = set()  # runners that left a call halfway: they go on when they were cleared
        self._is_called = False  # to meet again

    def serve(self) -> None:
        """Does what comes, for ever."""
        while True:
            call, arguments = self._next()
            if self._finishes(call, arguments):
                continue
            if call in ("prefill", "decode"):
                self._left.add(arguments[0])
            self.collectives.close()
            while not self._is_called:  # what comes until then was sent before the first rank knew
                self._is_called = self._next() == MEET_AGAIN
            self.meet_again()

    def _finishes(self, call: str, arguments: Sequence[Any]) -> bool:
        """Does one call. False where it cannot be ended, for want of memory on this rank or on another."""
        try:
            # The first rank raises the same for a request that cannot be served, and tells the caller.
            with contextlib.suppress(ModelError), torch.inference_mode():
                getattr(self, call)(*arguments)
            self.collectives.check()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                rank, size = self.model.group.rank, self.model.group.size
                self._connection.send(NoMemory(f"Rank {rank} of {size} ran out of memory: {error}"))
            elif not isinstance(error, OutOfStepError) and not self.collectives.is_aborted:
                raise
            return False
        return True

    @property
    def collectives(self) -> Collectives:
        assert self.model.group.collectives is not None
        return self.model.group.collectives

    def meet_again(self) -> None:
        self._is_called = False
        self.collectives.close()
        self.collectives.meet()

    def forward(self, arguments: Sequence[Any], keywords: dict[str, Any]) -> None:
        self.model(*arguments, **keywords)

    def single_pass(
        self, method: str, max_batch_tokens: int, arguments: Sequence[Any], keywords: dict[str, Any]
    ) -> None:
        getattr(SinglePass(self.model, max_batch_tokens), method)(*arguments, **keywords)

    def max_cached_tokens(self) -> None:
        max_cached_tokens(language_model(self.model))

    def make_runner(self, number: int, looks_for_text: bool) -> None:
        self._runners[number] = Runner(language_model(self.model), self._text if looks_for_text else None)

    def prefill(self, number: int, requests: Sequence[Request]) -> None:
        self._whole(number).prefill(requests)

    def decode(self, number: int) -> None:
        self._whole(number).decode()

    def clear(self, number: int) -> None:
        self._runners[number].clear()
        self._left.discard(number)

    def forget_runner(self, number: int) -> None:
        del self._runners[number]

    def _whole(self, number: int) -> Runner:
        if number in self._left:
            raise MemoryError("it left the call before this one halfway")
        return self._runners[number]

    def _text(self, token_ids: Sequence[int]) -> str:  # noqa: ARG002
        """Only the first rank has the tokenizer: it sends each text that it looks at, unless it has left the call."""
        text = self._next()
        if text == MEET_AGAIN:
            self._is_called = True
            raise OutOfStepError("the first rank has left the call")
        return str(text)

    def _next(self) -> Any:
        return pickle.loads(self._messages.get())


def main(file_descriptor: int) -> None:
    """Serves the first rank at the other end of a socket; never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches a whole terminal; the first rank decides
    connection = Connection(file_descriptor)
    settings = connection.recv()
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    rank, size = settings["rank"], settings["size"]
    try:
        torch.set_num_threads(settings["num_threads"])
        if settings["store"] is None:
            place = resolve_device(settings["device"], TensorParallel(rank=rank, size=size))
            collectives = Collectives(settings["file"], rank, size, place)
        else:  # a device of its own is all that this process sees
            place, host = resolve_device(settings["device"], SINGLE), own_address(file_descriptor)
            collectives = Collectives(settings["file"], rank, size, place, host, open_store(*settings["store"]))
        threading.Thread(target=_read, args=(connection, messages, collectives), daemon=True).start()
        connection.send("awake")
        group = TensorParallel(rank=rank, size=size, collectives=collectives.meet())
        model = load_part(settings["uri"], settings["architecture"], settings["dtype"], place, group)
        connection.send("ready")
        Follower(model, connection, messages).serve()
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        connection.send(DeviceError(f"Rank {rank} of {size} failed: {type(error).__name__}: {error}"))
    os._exit(1)  # the group's threads would hold up an orderly end


def _read(connection: Connection, messages: "queue.SimpleQueue[bytes]", collectives: Collectives) -> None:
    """Takes messages as they come, so that a call to meet and the first rank's end are noticed whatever runs here."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            content = connection.recv_bytes()
            if content == pickle.dumps(MEET_AGAIN):
                collectives.abort()
            messages.put(content)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
