"""The leader's side of its followers' processes: start them, send them calls, notice their end. It knows no model.

    leader (rank 0), in the caller's process              follower, in a process of its own (ranks/follower.py)
    collective_call(Call.PREFILL, ...) -- message ----->  Follower.prefill(...)
    its share of the call  <------- collectives ------->  its share of the call

The two are connected by a socket (connection.py). When the leader's process ends, for whatever reason, the system
closes its end and the follower exits. When a follower ends, the leader reads the end of its messages and raises why.
"""

import atexit
import contextlib
import logging
import pickle
import threading
from collections.abc import Iterator
from typing import Any

from batchloom.models.device import is_out_of_memory
from batchloom.models.errors import DeviceError, ModelError, RankLostError
from batchloom.models.ranks.calls import REJOIN_MESSAGE, Call, OutOfMemoryReport, Progress
from batchloom.models.ranks.connection import (
    LOOPBACK,
    FollowerProcess,
    FollowerStarter,
    LocalFollower,
    RemoteFollower,
)
from batchloom.models.ranks.group import open_store

log = logging.getLogger(__name__)

# After an error on the leader, how long to wait for a follower's report, which may be the cause.
GRACE_SECONDS = 5.0


class FollowerProcesses:
    """The processes of ranks 1 and up: starts them, sends them the leader's calls, and notices when one ends."""

    def __init__(self, size: int, load: dict[str, Any], starter: FollowerStarter | None = None) -> None:
        """Start the followers; return when all are about to join the group.

        `load`: the settings with which models/ranks/follower.py loads its slices. `starter` starts followers on other
        nodes; by default they are child processes on this one. Raises: DeviceError where one fails, RankLostError
        where one is killed or does not connect.
        """
        self.host = LOOPBACK if starter is None else starter.host
        self.store = open_store(self.host)
        self.failure: ModelError | None = None
        self.collectives: Any = None  # set by load_model before it joins; aborted when a follower ends
        self._turn = threading.RLock()
        self._changed = threading.Condition()
        self._num_reached: dict[Progress, int] = {}  # how many followers have come so far
        self._out_of_memory: OutOfMemoryReport | None = None
        self._processes: list[FollowerProcess] = []
        atexit.register(self.close)
        load = {**load, "size": size, "store": (self.host, self.store.port), "is_remote": starter is not None}
        for rank in range(1, size):
            self._start(rank, starter, {**load, "rank": rank})
        self.wait_for(Progress.STARTED)

    @contextlib.contextmanager
    def collective_call(self, call: Call, *arguments: Any) -> Iterator[None]:
        """Send a call to the followers, run the leader's share of it (the `with` block), and translate its errors.

        Raises: RankLostError where a follower was killed, DeviceError where one failed. Errors that all ranks raise
        alike, for a request that cannot be served, pass through. Where a rank ran out of memory, all abandon the call
        and join a new group, and that rank's error is raised. After any other error the ranks are out of step: the
        followers are ended.
        """
        with self._turn:
            self._raise_failure()
            if self._out_of_memory is not None:  # reported after the last call had ended here
                self._rejoin()
            try:
                self.send((call, arguments))
                yield
                self.collectives.check()
            except ModelError:
                raise
            except BaseException as error:
                out_of_memory = self._out_of_memory_behind(error)
                if out_of_memory is None:
                    self.end_after(error)
                    raise
                self._rejoin()
                if out_of_memory is error:
                    raise  # as its own cause it would be a reference cycle that keeps the call's tensors
                raise out_of_memory from error
            self._raise_failure()

    def end_after(self, error: BaseException) -> None:
        """End the followers after an error on the leader.

        Raises: DeviceError or RankLostError where a follower's failure caused the error; else returns.
        """
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            self._wait_for_reason()
        failure = self.failure
        self.close()
        if failure is not None and not isinstance(error, ModelError):
            raise copy_of(failure) from error

    def _out_of_memory_behind(self, error: BaseException) -> Exception | None:
        """Return the error of the rank that ran out of memory, where that caused this error on the leader."""
        if isinstance(error, Exception) and is_out_of_memory(error):
            return error
        if isinstance(error, RuntimeError):
            self._wait_for_reason()
            if self.failure is None and self._out_of_memory is not None:
                return MemoryError(self._out_of_memory.message)
        return None

    def _rejoin(self) -> None:
        """Have all ranks leave their group and join a new one, where nothing of an abandoned call can arrive."""
        self.collectives.close()  # ranks that wait for this one stop waiting
        self._out_of_memory = None
        self.send(REJOIN_MESSAGE)
        self.join()

    def join(self) -> None:
        """Join the group on the leader's side; return when all ranks have.

        Raises: DeviceError or RankLostError where a follower ends meanwhile, RuntimeError where the group times out.
        """
        outcome: list[BaseException | None] = []

        def join() -> None:
            try:
                self.collectives.join()
                outcome.append(None)
            except BaseException as error:
                outcome.append(error)
            with self._changed:
                self._changed.notify_all()

        # In a thread, because the wait for a lost rank cannot be interrupted: it takes TIMEOUT, minutes.
        threading.Thread(target=join, name="join", daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: outcome or self.failure is not None)
        if not outcome:
            self._raise_failure()
        elif outcome[0] is not None:
            raise outcome[0]

    def send(self, message: Any) -> None:
        """Send a message to all followers. Raises: DeviceError, RankLostError or OSError where one has ended."""
        content = pickle.dumps(message)
        for process in self._processes:
            try:
                process.connection.send_bytes(content)
            except OSError as error:
                self._wait_for_reason()
                self._raise_failure(error)
                raise

    def wait_for(self, progress: Progress) -> None:
        """Block until every follower has come so far. Raises: DeviceError or RankLostError where one ends before."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.failure is not None or self._num_reached.get(progress, 0) == len(self._processes)
            )
        if self.failure is not None:
            self.close()
            self._raise_failure()

    def close(self) -> None:
        """End the followers; the model cannot be used afterwards. Idempotent."""
        with self._changed:
            self.failure = self.failure or DeviceError("The ranks of this model were ended. Load it anew.")
        self._end()
        if self.collectives is not None:
            self.collectives.close()
        atexit.unregister(self.close)

    @property
    def process_ids(self) -> list[int]:
        """The followers' process ids on this node."""
        return [process.process_id for process in self._processes if process.process_id is not None]

    def _start(self, rank: int, starter: FollowerStarter | None, settings: dict[str, Any]) -> None:
        process = LocalFollower() if starter is None else RemoteFollower(starter, rank)
        self._processes.append(process)
        process.connection.send(settings)
        threading.Thread(target=self._listen, args=(rank, process), name=f"rank {rank}", daemon=True).start()

    def _listen(self, rank: int, process: FollowerProcess) -> None:
        """Receive one follower's messages until it ends; runs in a thread of its own."""
        failure: ModelError | None = None
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = process.connection.recv()
                if isinstance(message, ModelError):
                    failure = message
                elif isinstance(message, OutOfMemoryReport):
                    self._note_out_of_memory(message)
                else:
                    self._note_progress(message)
        how = process.wait()
        self._fail(
            failure
            or RankLostError(
                f"Rank {rank} of the model {how}. Its part of the model is gone, and with it this replica. Look for "
                "its last words above, or for an out-of-memory kill."
            )
        )

    def _note_progress(self, progress: Progress) -> None:
        with self._changed:
            self._num_reached[progress] = self._num_reached.get(progress, 0) + 1
            self._changed.notify_all()

    def _note_out_of_memory(self, report: OutOfMemoryReport) -> None:
        log.warning("%s", report.message)
        with self._changed:
            self._out_of_memory = report
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
            self._changed.wait_for(lambda: self.failure is not None or self._out_of_memory is not None, GRACE_SECONDS)

    def _raise_failure(self, cause: BaseException | None = None) -> None:
        if self.failure is not None:
            raise copy_of(self.failure) from cause


def copy_of(failure: ModelError) -> ModelError:
    """Return an equal exception to raise: one object raised repeatedly accumulates tracebacks, which keep tensors."""
    return type(failure)(*failure.args)
