"""A signal ends a command with its message and its code, whatever the command does."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from batchloom import pipelines
from batchloom.jobs import signals
from batchloom.jobs.exit_codes import ExitCode
from batchloom.jobs.remote import submission
from batchloom.jobs.remote.ray_job import RayJob
from batchloom.pipelines.errors import JobError
from batchloom.pipelines.ledger.ledger import MANIFEST

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_nohup() -> Iterator[None]:
    """The tests themselves may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("number", "code"), signals.EXIT_CODES.items())
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_signal_while_planning_ends_the_command_in_words(
    batchloom, make_job, monkeypatch, number: signal.Signals, code: ExitCode, command: str
) -> None:
    """SIGTERM ended the process without a word, and within Ray with code 15."""
    monkeypatch.setattr(pipelines, command, lambda *_: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    said = batchloom(command, make_job())
    assert (said.code, said.err.strip()) == (code, f"Stopped: {code.meaning}.")
    assert signal.getsignal(number) is before


def turned_into_another_error() -> None:
    try:
        interrupted()
    except BaseException as error:
        raise JobError("The raylet is gone.") from error


def turned_into_ctrl_c() -> None:
    """As Ray's Cython code does."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        raise KeyboardInterrupt from None


def taken_for_an_exit() -> None:
    try:
        interrupted()
    except BaseException:
        sys.exit(1)


def forgotten() -> None:
    with suppress(BaseException):
        interrupted()


def ignored_by_python() -> None:
    """Python ignores exceptions in finalizers."""

    class Finalized:
        def __del__(self) -> None:
            interrupted()

    Finalized()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.01)
    pytest.fail("the job went on")


@pytest.mark.parametrize(
    ("fate", "code"),
    [
        (turned_into_another_error, ExitCode.INTERRUPTED),
        (turned_into_ctrl_c, ExitCode.TERMINATED),
        (taken_for_an_exit, ExitCode.INTERRUPTED),
        (forgotten, ExitCode.INTERRUPTED),
        (ignored_by_python, ExitCode.INTERRUPTED),
    ],
)
def test_a_signal_ends_the_command_whatever_becomes_of_its_exception(
    batchloom, make_job, monkeypatch, fate: Callable[[], None], code: ExitCode
) -> None:
    monkeypatch.setattr(pipelines, "run", lambda *_: fate())
    said = batchloom("run", make_job())
    assert (said.code, said.err.strip()) == (code, f"Stopped: {code.meaning}.")


@pytest.mark.parametrize("is_written", [False, True])
def test_a_signal_while_the_manifest_is_written_leaves_it_whole_or_absent(
    batchloom, finished, tmp_path: Path, monkeypatch, is_written: bool
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished.output, output)
    (output / "_SUCCESS").unlink()
    (output / MANIFEST).unlink()
    replace = os.replace

    def replace_and_interrupt(source: str, target: str) -> None:
        if is_written:
            replace(source, target)
        if target.endswith(MANIFEST):
            interrupted()
        if not is_written:
            replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace_and_interrupt)
        said = batchloom("run", finished.job, "--output", output)
    assert said.code == ExitCode.INTERRUPTED
    assert (output / MANIFEST).exists() is is_written
    assert batchloom("run", finished.job, "--output", output).code == ExitCode.OK
    assert batchloom("verify", output).code == ExitCode.OK


def test_a_signal_while_a_submitted_job_is_watched_says_that_it_goes_on(batchloom, make_job, monkeypatch) -> None:
    started = MagicMock(id="raysubmit_1", address="http://head:8265")
    started.follow.side_effect = lambda _: turned_into_another_error()
    monkeypatch.setattr(submission, "submit", lambda *_: started)
    said = batchloom("submit", make_job(), "--address", "http://head:8265")
    assert said.code == ExitCode.INTERRUPTED
    where = "raysubmit_1 --address http://head:8265"
    assert said.err.endswith(
        f"\nraysubmit_1 goes on. To follow it: batchloom attach {where}. To stop it: batchloom stop {where}\n"
    )
    assert "Stopped" not in said.err


def test_a_second_signal_ends_the_process_whatever_the_first_one_started(monkeypatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    handler = signals.Handler()
    with pytest.raises(signals.Stop) as first:
        handler(signal.SIGTERM, None)
    assert first.value.code == handler.code == ExitCode.TERMINATED
    with pytest.raises(signals.Stop):  # os._exit would not return
        handler(signal.SIGINT, None)
    assert ended == [ExitCode.INTERRUPTED]


def test_a_submitted_job_that_was_stopped_ends_as_one_that_got_sigterm() -> None:
    """Ray keeps no exit code of a job that `ray job stop` ended."""
    client = MagicMock()
    client.tail_job_logs.return_value.__aiter__.return_value = ["Stopped.\n"]
    client.get_job_info.return_value = JobDetails(
        type=JobType.SUBMISSION, entrypoint="batchloom", status=JobStatus.STOPPED
    )
    told: list[str] = []
    assert RayJob("raysubmit_1", "http://head:8265", client).follow(told.append) == ExitCode.TERMINATED
    assert told == ["Stopped.\n"]


def start(job: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "batchloom", "run", str(job)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for_line(process: "subprocess.Popen[str]", words: str) -> None:
    for line in process.stderr:
        if words in line:
            return
    pytest.fail(f"the command ended with {process.wait()} and never said {words!r}")


def test_sigterm_while_ray_starts_ends_the_job_in_words(make_job) -> None:
    """Ray replaces the handler of SIGTERM by one that exits with 15."""
    process = start(make_job())
    wait_for_line(process, "Starting Ray")
    time.sleep(1.0)  # it lasts several seconds
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == ExitCode.TERMINATED
    assert said.strip().endswith(f"Stopped: {ExitCode.TERMINATED.meaning}.")


def test_sigterm_in_mid_run_keeps_finished_parts(make_job, tmp_path: Path) -> None:
    process = start(make_job(generation={"num_beams": 4, "max_length": 100, "min_length": 90}))
    output = tmp_path / "out"
    deadline = time.monotonic() + 120
    while not (kept := {path.name for path in output.glob("*.parquet")}):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == ExitCode.TERMINATED
    assert said.strip().endswith(f"Stopped: {ExitCode.TERMINATED.meaning}.")
    assert "Traceback" not in said
    assert kept <= {path.name for path in output.glob("*.parquet")}
    assert not (output / "_SUCCESS").exists()
