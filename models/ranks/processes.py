"""Followers are the processes of a model's other ranks, as the first rank sees them. It knows no model.

    first rank, in the caller's process                      a follower, in a process of its own (ranks/follower.py)
    together("prefill", requests) ---- a small message ----> prefill(requests)
            its part of the call  <---- collectives ------>  its part of the call

Each follower has one end of a connection (connection.py). When the first rank's process ends, whatever ended
it, the system closes the other end, and the follower goes. When a follower ends, the first rank reads the end of its
messages, and says so.
"""

import atexit
import contextlib
import logging
import pickle
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from batchloom.models.device import is_out_of_memory
from batchloom.models.errors import DeviceError, ModelError, RankLostError
from batchloom.models.ranks.connection import LOOPBACK, Caller, Child, Elsewhere, RankProcess
from batchloom.models.ranks.group import open_file, open_store

log = logging.getLogger(__name__)

# How long after an error of the first rank's a follower's word, which may be the reason, is waited for.
GRACE_SECONDS = 5.0
# The call, in the form of all calls, to leave what is under way and to meet in a new group.
MEET_AGAIN: tuple[str, tuple[()]] = ("meet_again", ())


@dataclass(frozen=True)
class NoMemory:
    """What a follower says when it leaves a call for want of memory; it waits for the next meeting then."""

    message: str


class FollowerProcesses:
    """Starts the ranks from the second on, tells them what to do, and notices when one is gone."""

    def __init__(self, size: int, load: dict[str, Any], elsewhere: Elsewhere | None = None) -> None:
        """`load`: what models/ranks/follower.py needs to load its part; returns when all are about to join the group.

        `elsewhere` starts the ranks on other nodes; by default they are children on this one.
        """
        self.file = open_file()  # where the ranks meet on one node
        self.host = LOOPBACK if elsewhere is None else elsewhere.host
        self.store = None if elsewhere is None else open_store(self.host)  # where they meet on several nodes
        self.failure: ModelError | None = None
        self.collectives: Any = None  # set when joined; a dead follower ends what waits for it there
        self._turn = threading.RLock()
        self._changed = threading.Condition()
        self._arrived: dict[str, int] = {}
        self._no_memory: NoMemory | None = None
        self._processes: list[RankProcess] = []
        atexit.register(self.close)
        load = {**load, "size": size, "file": self.file, "store": self.store and (self.host, self.store.port)}
        for rank in range(1, size):
            self._start(rank, elsewhere, {**load, "rank": rank})
        self.wait_for("awake")

    @contextlib.contextmanager
    def together(self, call: str, *arguments: Any) -> Iterator[None]:
        """Tells the followers to do `call`, lets the first rank do its part, and makes sense of what goes wrong.

        Raises: RankLostError where a follower was killed, DeviceError where one failed. Errors that all ranks raise
        alike, for a request that cannot be served, pass. Where a rank ran out of memory all leave the call and meet
        anew, and the error of that rank is raised. After any other error the ranks are out of step and end.
        """
        with self._turn:
            self._raise_failure()
            if self._no_memory is not None:  # said after the last call had ended here
                self._meet_again()
            try:
                self.send((call, arguments))
                yield
                self.collectives.check()
            except ModelError:
                raise
            except BaseException as error:
                no_memory = self._want_of_memory(error)
                if no_memory is None:
                    self.end_after(error)
                    raise
                self._meet_again()
                if no_memory is error:
                    raise  # as its own cause it would be a cycle, and keep the tensors of the call
                raise no_memory from error
            self._raise_failure()

    def end_after(self, error: BaseException) -> None:
        """Ends the followers. Raises the failure of the one that led to the first rank's error, where one did."""
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            self._wait_for_reason()
        failure = self.failure
        self.close()
        if failure is not None and not isinstance(error, ModelError):
            raise again(failure) from error

    def _want_of_memory(self, error: BaseException) -> Exception | None:
        """The error of the rank that ran out of memory, where that is what led to the first rank's error."""
        if isinstance(error, Exception) and is_out_of_memory(error):
            return error
        if isinstance(error, RuntimeError):
            self._wait_for_reason()
            if self.failure is None and self._no_memory is not None:
                return MemoryError(self._no_memory.message)
        return None

    def _meet_again(self) -> None:
        """All ranks leave their group and meet in a new one, in which nothing of a call that was left can arrive."""
        self.collectives.close()  # who waits for this rank stops waiting
        self._no_memory = None
        self.send(MEET_AGAIN)
        self.meet()

    def meet(self) -> None:
        """Joins the followers' group; returns when all are there. Raises what ended one of them meanwhile."""
        outcome: list[BaseException | None] = []

        def join() -> None:
            try:
                self.collectives.meet()
                outcome.append(None)
            except BaseException as error:
                outcome.append(error)
            with self._changed:
                self._changed.notify_all()

        # In a thread, as nothing else ends the wait for a rank that is gone: the group looks for it for minutes.
        threading.Thread(target=join, name="meeting", daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: outcome or self.failure is not None)
        if not outcome:
            self._raise_failure()
        elif outcome[0] is not None:
            raise outcome[0]

    def send(self, message: Any) -> None:
        """A message to all followers."""
        content = pickle.dumps(message)
        for process in self._processes:
            try:
                process.connection.send_bytes(content)
            except OSError as error:
                self._wait_for_reason()
                self._raise_failure(error)
                raise

    def wait_for(self, word: str) -> None:
        """Blocks until every follower has said `word`. Raises what ended one before."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.failure is not None or self._arrived.get(word, 0) == len(self._processes)
            )
        if self.failure is not None:
            self.close()
            self._raise_failure()

    def close(self) -> None:
        """Ends the followers. The model cannot be used afterwards."""
        with self._changed:
            self.failure = self.failure or DeviceError("The ranks of this model were ended. Load it anew.")
        self._end()
        if self.collectives is not None:
            self.collectives.close()
        atexit.unregister(self.close)

    @property
    def process_ids(self) -> list[int]:
        return [process.process_id for process in self._processes if process.process_id is not None]

    def _start(self, rank: int, elsewhere: Elsewhere | None, settings: dict[str, Any]) -> None:
        process = Child() if elsewhere is None else Caller(elsewhere, rank)
        self._processes.append(process)
        process.connection.send(settings)
        threading.Thread(target=self._listen, args=(rank, process), name=f"rank {rank}", daemon=True).start()

    def _listen(self, rank: int, process: RankProcess) -> None:
        """A follower's thread here: reads what it says until it ends."""
        failure: ModelError | None = None
        with contextlib.suppress(EOFError, OSError):
            while True:
                word = process.connection.recv()
                if isinstance(word, ModelError):
                    failure = word
                elif isinstance(word, NoMemory):
                    self._note_no_memory(word)
                else:
                    self._note(word)
        how = process.end()
        self._fail(
            failure
            or RankLostError(
                f"Rank {rank} of the model {how}. Its part of the model is gone, and with it this replica. Look for "
                "its last words above, or for an out-of-memory kill."
            )
        )

    def _note(self, word: str) -> None:
        with self._changed:
            self._arrived[word] = self._arrived.get(word, 0) + 1
            self._changed.notify_all()

    def _note_no_memory(self, word: NoMemory) -> None:
        log.warning("%s", word.message)
        with self._changed:
            self._no_memory = word
            self._changed.notify_all()
        self.collectives.abort()

    def _fail(self, failure: ModelError) -> None:
        with self._changed:
            if self.failure is None:
                self.failure = failure
                log.error("%s", failure)
            self._changed.notify_all()
        self._end()
        if self.collectives is not None:
            self.collectives.abort()

    def _end(self) -> None:
        for process in self._processes:
            process.kill()

    def _wait_for_reason(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.failure is not None or self._no_memory is not None, GRACE_SECONDS)

    def _raise_failure(self, cause: BaseException | None = None) -> None:
        if self.failure is not None:
            raise again(self.failure) from cause


def again(failure: ModelError) -> ModelError:
    """The same failure as a new object: one that is raised twice collects tracebacks, and in them tensors."""
    return type(failure)(*failure.args)
