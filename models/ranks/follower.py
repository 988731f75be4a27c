"""A follower: the process of one rank other than the leader's. It executes the leader's calls and decides nothing.

Started by models/ranks/processes.py with the file descriptor of its socket; `serve` executes calls in the order they
arrive. Where one rank cannot finish a call, all ranks abandon it: that rank closes its process group, which the others
notice, and all wait until the leader has them join a new group (Call.REJOIN).
"""

import contextlib
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import torch

from batchloom.models.checkpoints.loading import load_for_rank, resolve_device
from batchloom.models.device import is_out_of_memory, max_cached_tokens
from batchloom.models.errors import DeviceError, ModelError
from batchloom.models.families.base import LoadedModel
from batchloom.models.generation.model import generative
from batchloom.models.generation.requests import Request
from batchloom.models.generation.runner import Runner
from batchloom.models.ranks.calls import REJOIN_MESSAGE, Call, OutOfMemoryReport, Progress
from batchloom.models.ranks.connection import own_address
from batchloom.models.ranks.group import SINGLE, Collectives, OutOfStepError, TensorParallel, open_store
from batchloom.models.single_pass.single_pass import SinglePass


class Follower:
    """One rank's slices of a model, and its counterparts of the leader's runners."""

    def __init__(self, model: LoadedModel, connection: Connection, messages: "queue.SimpleQueue[bytes]") -> None:
        self.model = model
        self._connection = connection
        self._messages = messages
        self._runners: dict[int, Runner] = {}
        self._abandoned: set[int] = set()  # runners whose last call did not finish: unusable until cleared
        self._must_rejoin = False

    def serve(self) -> None:
        """Execute calls as they arrive; never returns."""
        while True:
            call, arguments = self._next()
            if self._executes(call, arguments):
                continue
            if call in (Call.PREFILL, Call.DECODE):
                self._abandoned.add(arguments[0])
            self.collectives.close()
            while not self._must_rejoin:  # discard what the leader sent before it knew
                self._must_rejoin = self._next() == REJOIN_MESSAGE
            self.rejoin()

    def _executes(self, call: Call, arguments: Sequence[Any]) -> bool:
        """Execute one call. Return False where it cannot finish, for lack of memory on this rank or another."""
        try:
            # The leader raises the same error for a request that cannot be served, and its caller sees it there.
            with contextlib.suppress(ModelError), torch.inference_mode():
                self.METHODS[call](self, *arguments)
            self.collectives.check()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                rank, size = self.model.group.rank, self.model.group.size
                self._connection.send(OutOfMemoryReport(f"Rank {rank} of {size} ran out of memory: {error}"))
            elif not isinstance(error, OutOfStepError) and not self.collectives.is_aborted:
                raise
            return False
        return True

    @property
    def collectives(self) -> Collectives:
        assert self.model.group.collectives is not None
        return self.model.group.collectives

    def rejoin(self) -> None:
        self._must_rejoin = False
        self.collectives.close()
        self.collectives.join()

    def forward(self, arguments: Sequence[Any], keywords: dict[str, Any]) -> None:
        self.model(*arguments, **keywords)

    def single_pass(
        self, method: str, max_batch_tokens: int, arguments: Sequence[Any], keywords: dict[str, Any]
    ) -> None:
        getattr(SinglePass(self.model, max_batch_tokens), method)(*arguments, **keywords)

    def max_cached_tokens(self) -> None:
        max_cached_tokens(generative(self.model))

    def make_runner(self, number: int, looks_for_text: bool) -> None:
        self._runners[number] = Runner(generative(self.model), self._text if looks_for_text else None)

    def prefill(self, number: int, requests: Sequence[Request]) -> None:
        self._runner(number).prefill(requests)

    def decode(self, number: int) -> None:
        self._runner(number).decode()

    def clear(self, number: int) -> None:
        self._runners[number].clear()
        self._abandoned.discard(number)

    def forget_runner(self, number: int) -> None:
        del self._runners[number]

    METHODS: ClassVar[dict[Call, Callable[..., None]]] = {
        Call.FORWARD: forward,  # one forward of padded batches
        Call.SINGLE_PASS: single_pass,  # one of SinglePass's methods over many sequences
        Call.MAX_CACHED_TOKENS: max_cached_tokens,  # the minimum over the ranks of what fits
        Call.MAKE_RUNNER: make_runner,  # the counterpart of a new runner of the leader's
        Call.PREFILL: prefill,  # requests start in a runner
        Call.DECODE: decode,  # one decode step of a runner
        Call.CLEAR: clear,  # a runner drops all its requests
        Call.FORGET_RUNNER: forget_runner,  # the leader's runner was freed
        Call.REJOIN: rejoin,  # a new group, after any rank abandoned a call
    }
    """What this process does for each call of the leader's."""

    def _runner(self, number: int) -> Runner:
        if number in self._abandoned:
            raise MemoryError("its previous call did not finish")
        return self._runners[number]

    def _text(self, token_ids: Sequence[int]) -> str:  # noqa: ARG002
        """Receive the text of some tokens from the leader, which alone has the tokenizer.

        Raises: OutOfStepError where the leader abandoned the call instead.
        """
        text = self._next()
        if text == REJOIN_MESSAGE:
            self._must_rejoin = True
            raise OutOfStepError("the leader abandoned the call")
        return str(text)

    def _next(self) -> Any:
        return pickle.loads(self._messages.get())


def main(file_descriptor: int, num_threads: int | None = None) -> None:
    """Run as the follower of the leader at the other end of a socket; ends the process, never returns.

    `num_threads`: by default as many as the leader has, whose node may have more CPUs or fewer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches a whole terminal; the leader decides
    connection = Connection(file_descriptor)
    settings = connection.recv()
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    rank, size = settings["rank"], settings["size"]
    try:
        torch.set_num_threads(num_threads or settings["num_threads"])
        # On another node this process sees its own device only.
        seen = SINGLE if settings["is_remote"] else TensorParallel(rank=rank, size=size)
        place, store = resolve_device(settings["device"], seen), open_store(*settings["store"])
        collectives = Collectives(store, rank, size, place, own_address(file_descriptor))
        threading.Thread(target=_read, args=(connection, messages, collectives), daemon=True).start()
        connection.send(Progress.STARTED)
        group = TensorParallel(rank=rank, size=size, collectives=collectives.join())
        model = load_for_rank(settings["uri"], settings["architecture"], settings["dtype"], place, group)
        connection.send(Progress.LOADED)
        Follower(model, connection, messages).serve()
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        connection.send(DeviceError(f"Rank {rank} of {size} failed: {type(error).__name__}: {error}"))
    os._exit(1)  # an orderly exit would wait for the process group's threads


def _read(connection: Connection, messages: "queue.SimpleQueue[bytes]", collectives: Collectives) -> None:
    """Queue messages as they arrive, so that REJOIN and the leader's end are noticed also during a call."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            content = connection.recv_bytes()
            if content == pickle.dumps(REJOIN_MESSAGE):
                collectives.abort()
            messages.put(content)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
