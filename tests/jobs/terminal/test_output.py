import json

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
