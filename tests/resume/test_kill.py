"""SIGKILL in mid-run, for real: the same command again ends with the bytes of an uninterrupted run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import pipelines

NUM_ROWS, ROWS_PER_UNIT = 240, 10
NUM_UNITS = NUM_ROWS // ROWS_PER_UNIT


@pytest.fixture
def job_file(tmp_path: Path, checkpoint: str, make_sentences) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for shard in range(3):
        first = shard * NUM_ROWS // 3
        table = pa.table({"id": range(first, first + NUM_ROWS // 3), "text": make_sentences(NUM_ROWS // 3, seed=shard)})
        pq.write_table(table, folder / f"{shard}.parquet", row_group_size=40)
    job = {
        "task": "summarization",
        "model": checkpoint,
        "input": {"paths": [str(folder)], "rows_per_unit": ROWS_PER_UNIT},
        "output": {"path": str(tmp_path / "out")},
        "generation": {"num_beams": 4, "max_length": 60, "min_length": 50},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def start(job_file: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "jobs", "run", str(job_file), "--set", f"output.path={output}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def parts(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("*.parquet")}


def kill_when(process: subprocess.Popen, output: Path, num_parts: int) -> None:
    """SIGKILL the driver alone, as the kernel's out-of-memory killer would, once that many parts are there."""
    wait_for_parts(process, output, num_parts)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_parts(process: subprocess.Popen, output: Path, num_parts: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(output.glob("*.parquet"))) < num_parts:
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.02)


def wait_until_quiet(output: Path) -> dict[str, bytes]:
    """Parts after the killed driver's workers are gone too: a write in flight may still land, whole."""
    before = None
    while before != (now := parts(output)):
        before = now
        time.sleep(1.0)
    return now


def test_a_job_killed_three_times_ends_like_one_that_was_not(job_file: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(job_file, whole)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed.decode()

    kept: dict[str, bytes] = {}
    for num_parts in (1, NUM_UNITS // 3, 2 * NUM_UNITS // 3):
        kill_when(start(job_file, broken), broken, num_parts)
        survived = wait_until_quiet(broken)
        assert num_parts <= len(survived) < NUM_UNITS
        assert kept.items() <= survived.items()
        kept = survived
        assert not (broken / "_SUCCESS").exists()
    modified = {name: (broken / name).stat().st_mtime_ns for name in kept}

    process = start(job_file, broken)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed.decode()
    assert parts(broken) == parts(whole)
    assert {name: (broken / name).stat().st_mtime_ns for name in kept} == modified  # not written again
    manifest = pipelines.verify(str(broken))
    assert manifest.ok
    assert manifest.num_rows == NUM_ROWS


def test_a_killed_replica_is_replaced_and_no_row_is_lost(job_file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BATCHLOOM_TEST_RUN", str(tmp_path))
    output = tmp_path / "out"
    process = start(job_file, output)
    wait_for_parts(process, output, 2)
    replicas = [pid for pid, line in processes_with(f"BATCHLOOM_TEST_RUN={tmp_path}").items() if "Infer" in line]
    assert len(replicas) == 1
    os.kill(replicas[0], signal.SIGKILL)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed.decode()
    verification = pipelines.verify(str(output))
    assert verification.ok, verification.problems
    assert verification.num_rows == NUM_ROWS


def test_a_killed_driver_leaves_no_process_behind(job_file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BATCHLOOM_TEST_RUN", str(tmp_path))
    process = start(job_file, tmp_path / "out")
    monkeypatch.delenv("BATCHLOOM_TEST_RUN")
    kill_when(process, tmp_path / "out", 1)
    marker = f"BATCHLOOM_TEST_RUN={tmp_path}"
    deadline = time.monotonic() + 30
    while left := processes_with(marker):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def processes_with(marker: str) -> dict[int, str]:
    """Command lines, by process id, of the other processes that carry a variable in their environment."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if marker.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return found
