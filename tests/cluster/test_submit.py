"""`batchloom submit` onto a Ray head of its own."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from batchloom import pipelines


@pytest.fixture
def submit(tmp_path: Path, checkpoint: str, corpus: Path, head: Any, site: Path) -> Callable[..., Any]:
    """`batchloom submit` in the test's folder, so that the job file's relative paths mean something there."""
    job = {
        "task": "summarization",
        "model": checkpoint,
        "input": {"paths": [f"{corpus.name}/*.parquet"], "keep_columns": ["id"], "rows_per_unit": 20},
        "output": {"path": "out"},
        "generation": {"num_beams": 1, "max_length": 8, "min_length": 2},
        "engine": {"device": "cpu"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))

    def submit(
        *options: str, command: Sequence[str] = ("submit", "job.yaml"), **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "batchloom", *command, "--address", head.address, *options]
        environment = os.environ | {"PYTHONPATH": str(site)} | variables
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    return submit


def test_a_submitted_job_gives_every_row_once(submit: Callable[..., Any], head: Any, tmp_path: Path) -> None:
    said = submit(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=head.token)
    assert said.returncode == 0, said.stderr
    assert "ended with exit code 0: every row is accounted for" in said.stdout
    assert "The cluster must see these paths as this machine does:\n  /" in said.stderr
    assert f"\n  {tmp_path}/out\n" in said.stderr
    assert "75 rows, all answered" in said.stderr
    verification = pipelines.verify(str(tmp_path / "out"))
    assert verification.ok, verification.problems
    assert sorted(pq.read_table(tmp_path / "out")["id"].to_pylist()) == list(range(75))


def test_a_job_that_is_refused_there_ends_here_with_its_exit_code(submit: Callable[..., Any], head: Any) -> None:
    said = submit("--set", "input.text_column=body", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=head.token)
    assert said.returncode == 2
    assert "Columns 'body' are not in the input." in said.stderr
    assert "exit code 2: the job file or the command line is wrong; nothing was computed" in said.stdout


@pytest.mark.parametrize(
    "variables", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong" * 10}]
)
def test_without_the_token_a_message_says_what_to_set(submit: Callable[..., Any], variables: dict[str, str]) -> None:
    said = submit(**variables)
    assert said.returncode == 2
    assert "wants a token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the one that its head" in said.stderr
    assert "Traceback" not in said.stderr


def test_jobs_are_listed_followed_stopped_and_taken_up(submit: Callable[..., Any], head: Any, tmp_path: Path) -> None:
    """As an engineer would: submit and leave, look, stop, submit again, read what it said."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head.token}

    def command(*words: str) -> "subprocess.CompletedProcess[str]":
        said = submit(command=words, **token)
        assert "Traceback" not in said.stderr
        return said

    said = command("submit", "job.yaml", "--no-wait", "--set", "output.path=stopped")
    assert said.returncode == 0, said.stderr
    job_id = re.search(r"^Submitted (batchloom-stopped-\d{8}-\d{6}-[0-9a-f]{4})$", said.stdout, re.MULTILINE)[1]
    assert f"batchloom attach {job_id} --address {head.address}" in said.stdout
    assert f"batchloom stop {job_id} --address {head.address}" in said.stdout
    (listed,) = [json.loads(line) for line in command("jobs", "--json").stdout.splitlines() if job_id in line]
    assert listed["task"] == "summarization"
    assert listed["output"] == f"{tmp_path}/stopped"
    assert listed["status"] in ("PENDING", "RUNNING")
    stopped = command("stop", job_id)
    assert stopped.returncode == 0
    assert f"{job_id} ended with exit code 143: " in stopped.stdout
    assert command("attach", job_id).returncode == 143
    again = command("submit", "job.yaml", "--set", "output.path=stopped", "--json")
    assert again.returncode == 0, again.stderr
    events = [json.loads(line) for line in again.stdout.splitlines()]
    assert [event["event"] for event in events] == ["submitted", "ended"]
    assert "75 rows, all answered" in command("logs", events[0]["job"]).stdout
    table = command("jobs").stdout
    assert table.index(events[0]["job"]) < table.index(job_id)  # newest first
    assert re.search(rf"{events[0]['job']}\s+(state: )?succeeded \(0\)", table)
    assert re.search(rf"{job_id}\s+(state: )?stopped", table)
    assert pipelines.verify(str(tmp_path / "stopped")).ok
    unknown = command("attach", "batchloom-nobody")
    assert unknown.returncode == 2
    assert (
        f"has no batchloom job batchloom-nobody. The newest that it has: {events[0]['job']}, {job_id}" in unknown.stderr
    )


def test_an_address_where_nobody_answers_is_a_message(submit: Callable[..., Any], free_port: int) -> None:
    said = submit("--address", f"http://127.0.0.1:{free_port}", RAY_AUTH_MODE="disabled")
    assert said.returncode == 2
    assert f"No Ray dashboard answers at http://127.0.0.1:{free_port}." in said.stderr
    assert "Traceback" not in said.stderr
