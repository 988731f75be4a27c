"""A signal ends a command with its message and its code, whatever the command does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from batchloom import pipelines
from batchloom.jobs import signals
from batchloom.jobs.exit_codes import ExitCode
from batchloom.jobs.submit import Submission

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, ExitCode.TERMINATED), (signal.SIGINT, ExitCode.INTERRUPTED)]
)
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
    assert Submission("raysubmit_1", "http://head:8265", client).follow(told.append) == ExitCode.TERMINATED
    assert told == ["Stopped.\n"]


def start(job: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "batchloom", "run", str(job)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for_line(process: "subprocess.Popen[str]", beginning: str) -> None:
    for line in process.stderr:
        if line.startswith(beginning):
            return
    pytest.fail(f"the command ended with {process.wait()} and never said {beginning!r}")


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
