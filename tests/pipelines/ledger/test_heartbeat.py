"""A driver's heartbeat and lock: who runs is found at once on one machine, and after some beats from another."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from batchloom.models.patience import Patience
from batchloom.pipelines.counts import UnitRecord
from batchloom.pipelines.errors import OutputError
from batchloom.pipelines.ledger import heartbeat
from batchloom.pipelines.ledger.heartbeat import LOST_SECONDS, Heartbeat, Lock
from batchloom.pipelines.ledger.ledger import HEARTBEAT
from batchloom.pipelines.metrics import Planned, Replicas, UnitDone, UnitFailed
from batchloom.pipelines.running import pulse
from batchloom.pipelines.running.pulse import Pulse
from batchloom.pipelines.stores.storage import Store
from batchloom.pipelines.telemetry.usage import ReplicaUsage, Usage

HOLD = """
import sys, time
from batchloom.pipelines.running.pulse import Pulse
from batchloom.pipelines.stores.storage import Store
with Pulse(Store(sys.argv[1]), "f", False) as pulse:
    pulse.begin()
    print("running", flush=True)
    time.sleep(600)
"""


def one(**changes: object) -> Heartbeat:
    values = {
        "run": "r", "beat": 3, "started": time.time() - 60, "at": time.time(), "host": "elsewhere", "user_id": 0,
        "process_id": 7, "fingerprint": "f", "stage": "", "num_rows": 100, "num_rows_done": 40, "num_errors": 0,
    }  # fmt: skip
    return Heartbeat(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"), {}, Patience(seconds=1))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(pulse, "LOOK_SECONDS", 0.05)


def test_a_heartbeat_is_read_as_it_was_written(store: Store) -> None:
    assert heartbeat.read(store) is None
    written = one(trouble="a \n b")
    heartbeat.write(store, written)
    assert heartbeat.read(store) == written
    store.put(HEARTBEAT, b'{"run": 7}')
    assert heartbeat.read(store) is None


@pytest.mark.parametrize(
    ("seconds_ago", "changes", "is_alive"),
    [(0, {}, True), (-500, {}, True), (LOST_SECONDS + 5, {}, False), (0, {"ended": "Stop"}, False)],
)
def test_a_driver_of_another_machine_lives_as_long_as_it_beats(
    store: Store, seconds_ago: float, changes, is_alive: bool
) -> None:
    assert one(at=time.time() - seconds_ago, **changes).is_alive(Lock(store)) is is_alive


def test_a_run_beside_one_of_this_machine_is_refused_until_its_process_ends_however_it_ends(store: Store) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, store.url], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "running\n"
        until = time.monotonic() + 30
        while heartbeat.read(store) is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert heartbeat.read(store).is_alive(Lock(store))
        with pytest.raises(OutputError, match=rf"is running in output .*: process {other.pid} on ") as refusal:
            Pulse(store, "f", False).__enter__()
        assert "--even-if-running" in str(refusal.value)
        with Pulse(store, "f", True):
            pass
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    assert not heartbeat.read(store).is_alive(Lock(store))
    begun = time.monotonic()
    with Pulse(store, "f", False):
        assert time.monotonic() - begun < 1  # nobody waits for a dead driver of this machine


def test_two_runs_of_one_process_are_told_apart(store: Store) -> None:
    with Pulse(store, "f", False), pytest.raises(OutputError, match="is running in output"):
        Pulse(store, "f", False).__enter__()
    with Pulse(store, "f", False):
        pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt("Stopped: the job was told to end."), "Stopped: the job was told to end."),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (OSError("disk is full"), "OSError: disk is full"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_how_a_run_ended_is_told_once(store: Store, error: BaseException, said: str) -> None:
    """`status` said "Stop: Stopped: the job ..."."""
    with pytest.raises(type(error)), Pulse(store, "f", False) as pulse:  # noqa: PT012
        pulse.begin()
        raise error
    assert heartbeat.read(store).ended == said


@pytest.mark.usefixtures("quick")
def test_a_run_beside_one_of_another_machine_is_refused_when_it_beats(store: Store) -> None:
    heartbeat.write(store, one())
    timer = threading.Timer(0.2, heartbeat.write, (store, one(beat=4, num_rows_done=50)))
    timer.start()
    with pytest.raises(OutputError, match="process 7 on elsewhere, 50 rows done"):
        Pulse(store, "f", False).__enter__()
    timer.join()
    assert Lock(store).take()  # it was given back


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("after", [None, one(ended="Stop")])
def test_a_run_after_one_of_another_machine_begins_when_it_beats_no_more(store: Store, after: Heartbeat | None) -> None:
    heartbeat.write(store, one())
    if after is not None:
        threading.Timer(0.1, heartbeat.write, (store, after)).start()
    begun = time.monotonic()
    with Pulse(store, "f", False):
        assert 0.1 < time.monotonic() - begun < 5
    heartbeat.write(store, one(at=time.time() - pulse.UNSURE_SECONDS - 5))
    begun = time.monotonic()
    with Pulse(store, "f", False):
        assert time.monotonic() - begun < 0.1


@pytest.mark.usefixtures("quick")
def test_a_pulse_tells_how_far_a_run_is_and_how_it_ended(store: Store) -> None:
    record = UnitRecord(
        part="p", ranges=((0, 30),), num_rows=30, num_errors=2, num_input_tokens=9, num_output_tokens=9,
        num_truncated_tokens=0,
    )  # fmt: skip
    beating = Pulse(store, "f", False)
    with contextlib.suppress(RuntimeError), beating:
        beating(Planned(num_shards=1, num_units=4, num_rows=100, num_units_done=1, num_rows_done=10, num_parts=3))
        beating.begin()
        usage = Usage(loading=9.0, computing=4.0, waiting=8.0)
        waiting = (ReplicaUsage("10.0.0.9", 7, usage),)
        measures = {"engine_prompt_tokens": 10.0, "engine_padded_tokens": 11.0, "tokenize_seconds": 30.0}
        for event in (
            Replicas(1, 2, 5, usage, waiting),
            UnitDone(record, measures),
            UnitFailed("a.parquet", 5, 9, "disk full"),
        ):
            beating(event)
        until = time.monotonic() + 30
        while (now := heartbeat.read(store)) is None or now.beat < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert (now.num_rows, now.num_rows_done, now.num_errors, now.num_units_failed) == (100, 40, 2, 1)
        assert (now.num_replicas, now.num_replicas_starting) == (1, 2)
        assert (now.num_units_in_flight, now.padding) == (5, 1.1)
        assert (now.usage, now.most_waiting) == (usage, waiting)
        assert now.hint.startswith("starved by tokenization: replicas waited 67% of their time for units; ")
        assert now.trouble == "a.parquet (rows 5-9): disk full"
        assert not now.ended
        raise RuntimeError("no more")
    last = heartbeat.read(store)
    assert last == replace(last, ended="RuntimeError: no more")


@pytest.mark.usefixtures("quick")
def test_a_store_that_fails_stops_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger=pulse.__name__)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/_batchloom").write_text("a file where a folder must be")
    store = Store(str(tmp_path / "out"), {}, Patience(seconds=0.1))

    def num_failed() -> int:
        return sum(record.msg.startswith("the heartbeat was not written") for record in caplog.records)

    with Pulse(store, "f", True) as beating:
        beating.begin()
        until = time.monotonic() + 30
        while num_failed() < 3:  # it goes on
            assert time.monotonic() < until
            time.sleep(0.02)
        (tmp_path / "out/_batchloom").unlink()
        while heartbeat.read(store) is None:  # and is there when the store is
            assert time.monotonic() < until
            time.sleep(0.02)
        beating.end("OSError: no more")
    assert heartbeat.read(store).ended == "OSError: no more"


def test_no_credential_of_an_error_is_in_a_heartbeat(store: Store) -> None:
    """Both are cut to 300 characters, which could hide a secret's end from whoever looks for it."""
    secret = "https://me:pass@host/x?X-Amz-Signature=" + "5ecret" * 60
    beating = Pulse(store, "f", False)
    with contextlib.suppress(RuntimeError), beating:
        beating(UnitFailed("a.parquet", 5, 9, f"Reading {secret}"))
        beating.begin()
        raise RuntimeError(f"GET {secret}")
    last = heartbeat.read(store)
    assert last.ended == "RuntimeError: GET https://***@host/x?X-Amz-Signature=***"
    assert last.trouble == "a.parquet (rows 5-9): Reading https://***@host/x?X-Amz-Signature=***"


def no_locks(*_: object) -> None:  # as NFS without its lock service says it
    raise OSError(errno.ENOLCK, "No locks available")


def as_a_file(path: Path) -> str:
    path.write_text("a file where locks must have a folder")
    return str(path)


@pytest.fixture(params=["a folder that cannot be made", "a disk without locks"])
def lockless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if request.param == "a disk without locks":
        monkeypatch.setattr(heartbeat.fcntl, "flock", no_locks)
    monkeypatch.setattr(heartbeat.tempfile, "gettempdir", lambda: str(tmp_path))
    if request.param == "a folder that cannot be made":
        as_a_file(tmp_path / f".batchloom-locks-{os.getuid()}")


@pytest.mark.usefixtures("quick", "lockless")
def test_without_locks_a_run_goes_on_and_says_so_and_beats_tell_of_another(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with Pulse(store, "f", False) as beating:
        beating.begin()
        until = time.monotonic() + 30
        while heartbeat.read(store) is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert heartbeat.read(store).is_alive(Lock(store))
        assert [record.msg[:11] for record in caplog.records if record.levelname == "WARNING"] == ["No lock in "]
        with pytest.raises(OutputError, match="is running in output"):
            Pulse(store, "f", False).__enter__()
        beating.rest()
    with Pulse(store, "f", False):  # which waits until it sees that nobody beats
        pass
    heartbeat.write(store, replace(heartbeat.read(store), at=time.time() - LOST_SECONDS - 5))
    assert not heartbeat.read(store).is_alive(Lock(store))
