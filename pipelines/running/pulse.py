"""The pulse of a run: it refuses to run beside another driver of the same output, and writes this one's heartbeat."""

import logging
import os
import socket
import threading
import time
import uuid
from types import TracebackType

from batchloom.models.patience import Patience
from batchloom.models.redaction import redacted
from batchloom.pipelines.errors import OutputError, StoreError
from batchloom.pipelines.ledger import heartbeat
from batchloom.pipelines.ledger.heartbeat import BEAT_SECONDS, Heartbeat, Lock
from batchloom.pipelines.metrics import Event, ReplicaEnded, UnitFailed, Waiting
from batchloom.pipelines.stores.storage import Store
from batchloom.pipelines.watching.progress import Progress

log = logging.getLogger(__name__)

UNSURE_SECONDS = 900.0  # an older heartbeat is a dead driver's, whatever the difference of two machines' clocks
LOOK_SECONDS = 3.0
IMPATIENCE = Patience(seconds=0.0, doubtful_seconds=0.0, timeout=10.0)  # the next beat is the next attempt
SHOWN = 300  # characters of a trouble


class Pulse:
    """A context around a run. Call it with the run's events."""

    def __init__(self, store: Store, fingerprint: str, even_if_running: bool) -> None:
        """`even_if_running`: do not look for another driver."""
        self._to_look_at = store
        self._store = Store(store.url, store.options, IMPATIENCE, store.known)
        self._fingerprint, self._even_if_running = fingerprint, even_if_running
        self._lock = Lock(store)
        self._progress = Progress()
        self._trouble = self._ended = ""
        self._run, self._beats, self._started = uuid.uuid4().hex, 0, time.time()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Pulse":
        """Raises: OutputError where another driver of the output is alive."""
        is_ours = self._lock.take()
        if not self._even_if_running:
            try:
                self._refuse_another(is_ours)
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            is_sentence = isinstance(error, KeyboardInterrupt)  # "Stopped: ..." of a signal
            named = [] if is_sentence and str(error) else [kind.__name__]
            self.end(": ".join([*named, *filter(None, [str(error)])]))
        self._lock.release()

    def __call__(self, event: Event) -> None:
        self._progress(event)
        match event:
            case UnitFailed():
                self._trouble = f"{event.shard} (rows {event.start}-{event.stop}): {event.reason}"
            case ReplicaEnded():
                self._trouble = f"A replica on {event.node} was ended: {event.reason}"
            case Waiting() if event.lacking:
                self._trouble = "; ".join(event.lacking)

    def begin(self) -> None:
        """Beat from now on."""
        self._thread = threading.Thread(target=self._beat_until_over, name="heartbeat", daemon=True)
        self._thread.start()

    def rest(self) -> None:
        """Beat no more: the job is about to be closed, which removes the heartbeat."""
        if self._thread is not None:
            self._over.set()
            self._thread.join(IMPATIENCE.timeout)

    def end(self, how: str) -> None:
        """Beat for the last time."""
        self.rest()
        if self._thread is not None:
            self._ended = _shown(how)
            self._beat()

    def _beat_until_over(self) -> None:
        self._beat()
        while not self._over.wait(BEAT_SECONDS):
            self._beat()

    def _beat(self) -> None:
        try:
            heartbeat.write(self._store, self._now())
        except StoreError as error:  # of no account: what matters to rows fails by itself
            log.debug("the heartbeat was not written: %s", error)
        self._beats += 1

    def _now(self) -> Heartbeat:
        progress = self._progress
        return Heartbeat(
            run=self._run,
            beat=self._beats,
            started=self._started,
            at=time.time(),
            host=socket.gethostname(),
            user_id=os.getuid(),
            process_id=os.getpid(),
            fingerprint=self._fingerprint,
            stage="" if progress.is_running else progress.stage,
            num_rows=progress.num_rows,
            num_rows_done=progress.num_rows_done,
            num_errors=progress.num_errors,
            num_units_failed=progress.num_units_failed,
            rows_per_second=progress.rows_per_second,
            input_tokens_per_second=progress.input_tokens_per_second,
            output_tokens_per_second=progress.output_tokens_per_second,
            num_replicas=progress.replicas.num_ready,
            num_replicas_starting=progress.replicas.num_starting,
            num_units_in_flight=progress.replicas.num_units,
            padding=progress.padding,
            usage=progress.replicas.usage,
            most_waiting=progress.replicas.most_waiting,
            hint=progress.hint,
            trouble=_shown(self._trouble),
            ended=self._ended,
        )

    def _refuse_another(self, is_ours: bool) -> None:
        """Raises: OutputError where another driver holds this machine's lock, or beats on another machine."""
        last = self._last()
        if not is_ours:
            raise OutputError(self._refusal(last))
        is_known_dead = last is not None and last.is_of_here and self._lock.tells
        if last is None or last.ended or is_known_dead or last.age() > UNSURE_SECONDS:
            return
        patience = 3 * BEAT_SECONDS
        log.warning(
            "A job on %s wrote to this output %.0f s ago. Whether it still runs is seen within %.0f s.",
            last.host, last.age(), patience,
        )  # fmt: skip
        until = time.monotonic() + patience
        while time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
            now = self._last()
            if now is None or now.ended:
                return
            if (now.run, now.beat) != (last.run, last.beat):
                raise OutputError(self._refusal(now))

    def _last(self) -> Heartbeat | None:
        """Return the heartbeat that is there. An output that cannot be read is told by those that need it."""
        try:
            return heartbeat.read(self._to_look_at)
        except StoreError as error:
            log.debug("the heartbeat was not read: %s", error)
            return None

    def _refusal(self, last: Heartbeat | None) -> str:
        who = "" if last is None else f": process {last.process_id} on {last.host}, {last.num_rows_done:,} rows done"
        return (
            f"A job is running in output {self._store.url}{who}. Follow it by `batchloom status`, or stop it: the "
            "same command goes on from there. Two drivers at once lose nothing and compute everything twice: "
            "--even-if-running (in Python even_if_running=True) starts one nevertheless."
        )


def _shown(words: str) -> str:
    """Return what others may read of an error: without credentials, which may be cut in two afterwards alone."""
    return redacted(words)[:SHOWN]
