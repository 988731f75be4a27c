import json
import logging
import re

import pytest

from batchloom.jobs.terminal.output import Output
from batchloom.pipelines.metrics import ReplicasStarting


def test_what_others_print_does_not_get_between_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Ray says `(raylet) A worker died` on the driver's stdout."""
    with Output(as_json=True).watching() as watcher:
        print("(raylet) A worker died")
        watcher(ReplicasStarting())
    said = capsys.readouterr()
    assert json.loads(said.out) == {"event": "replicas_starting"}
    assert said.err == "(raylet) A worker died\n"


def test_warnings_of_a_running_job_carry_the_time_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Between lines with times stood warnings without any."""
    output = Output()
    with output.noting_logs(), output.watching() as watcher:
        watcher(ReplicasStarting())
        logging.getLogger("batchloom.pipelines").warning("a replica is slow")
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  Starting Ray .*", first)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  a replica is slow", second)
