"""A heartbeat: what a job's driver says of itself in the output, so that others know whether it runs and how far it is.

`_batchloom/heartbeat.json` explains and decides nothing about rows. A driver also holds a lock on its machine, which
ends with its process, so that there nobody has to wait to see whether it is alive.
"""

import fcntl
import hashlib
import json
import logging
import os
import socket
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from batchloom.pipelines.ledger.ledger import HEARTBEAT
from batchloom.pipelines.records import from_json, parsed
from batchloom.pipelines.stores.storage import Store
from batchloom.pipelines.telemetry.usage import ReplicaUsage, Usage

log = logging.getLogger(__name__)

BEAT_SECONDS = 15.0
LOST_SECONDS = 4 * BEAT_SECONDS  # without a beat: its process, its machine or its way to the store is gone


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """What a driver said last. Times are seconds since 1970, by its own clock."""

    run: str
    """Another one for each run."""
    beat: int
    """From 0, one more each time."""
    started: float
    at: float
    host: str
    user_id: int
    process_id: int
    fingerprint: str
    stage: str
    """What it did before the first unit was done; empty since."""
    num_rows: int
    num_rows_done: int
    num_errors: int
    """Rows with an error among those that are done."""
    num_units_failed: int = 0
    rows_per_second: float = 0.0
    input_tokens_per_second: float = 0.0
    output_tokens_per_second: float = 0.0
    num_replicas: int = 0
    """That have loaded their model and report."""
    num_replicas_starting: int = 0
    num_units_in_flight: int = 0
    """That replicas compute."""
    padding: float | None = None
    """Computed over real prompt tokens."""
    usage: Usage = field(default_factory=Usage)
    """Seconds of all replicas."""
    most_waiting: tuple[ReplicaUsage, ...] = ()
    """Those that waited longest for units."""
    hint: str = ""
    """Which stage they wait for, and what helps; empty where they hardly wait."""
    trouble: str = ""
    """Its last failed unit, lost replica or wait, in words."""
    ended: str = ""
    """The error that ended the run. Empty while it runs, and where it was killed; a finished job has no heartbeat."""

    def age(self) -> float:
        """Seconds since it was written, by this machine's clock; 0 where that one is behind."""
        return max(0.0, time.time() - self.at)

    @property
    def is_of_here(self) -> bool:
        """Whether this machine's lock tells if its driver lives."""
        return (self.host, self.user_id) == (socket.gethostname(), os.getuid())

    def is_alive(self, lock: "Lock") -> bool:
        """Whether its driver runs, as far as can be told at once. `lock`: of the same output, on this machine."""
        if self.ended:
            return False
        is_held = lock.is_held_elsewhere() if self.is_of_here else None
        return self.age() < LOST_SECONDS if is_held is None else is_held


def read(store: Store) -> Heartbeat | None:
    """Return the heartbeat of an output; None where it has none, or one that cannot be read. Raises: StoreError."""
    try:
        return from_json(Heartbeat, parsed(store.read(HEARTBEAT)))
    except (FileNotFoundError, ValueError):
        return None


def write(store: Store, heartbeat: Heartbeat) -> None:
    """Raises: StoreError."""
    store.put(HEARTBEAT, json.dumps(asdict(heartbeat)).encode())


class Lock:
    """The lock that the driver of an output holds on its machine until its process ends, however it ends. It is its
    user's. Where a machine has no such locks (a read-only temporary folder, a disk without flock), beats alone tell."""

    def __init__(self, store: Store) -> None:
        folder = Path(tempfile.gettempdir()) / f".batchloom-locks-{os.getuid()}"
        self._path = folder / f"{hashlib.sha256(store.url.encode()).hexdigest()[:32]}.lock"
        self._file: IO[bytes] | None = None
        self.tells = False
        """Whether it was there before `take`, and worked: then it tells of every other driver of this machine."""

    def take(self) -> bool:
        """Return whether this process may drive the output; false where another driver holds the lock."""
        try:
            self.tells = self._path.exists()
            self._file = self._locked()
        except BlockingIOError:
            return False
        except OSError as error:
            self.tells = False
            log.warning(
                "No lock in %s (%s): the job goes on without. Another driver of this output is found by its heartbeat "
                "alone, within a minute.",
                self._path.parent, error.strerror or error,
            )  # fmt: skip
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def is_held_elsewhere(self) -> bool | None:
        """Return whether another driver holds it; None where nobody has ever locked here, or nobody can."""
        if self._file is not None:
            return False
        try:
            if not self._path.exists():
                return None
            self._locked().close()
        except BlockingIOError:
            return True
        except OSError:
            return None
        return False

    def _locked(self) -> IO[bytes]:
        """Raises: BlockingIOError where it is held; OSError where there are no locks."""
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        file = self._path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise
        return file
