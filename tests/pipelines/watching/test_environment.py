"""What nodes say becomes a line: an environment that cannot be set up, a node that is gone."""

import logging
import time
from typing import Any

import pytest
import ray

from batchloom.pipelines.config import EngineConfig, LimitsConfig
from batchloom.pipelines.errors import JobError
from batchloom.pipelines.replicas.placement import Cluster, place
from batchloom.pipelines.running.stream import translated_errors
from batchloom.pipelines.watching import watchdog
from batchloom.pipelines.watching.environment import LONGEST, unready
from batchloom.pipelines.watching.ray_servers import RayServers

MESSAGE = """Could not create the actor because its associated runtime env failed to be created.
[Node 10.0.0.7] Traceback (most recent call last):
  File "agent.py", line 561, in _create_runtime_env_with_retry
RuntimeError: Failed to install packages, the last lines of pip:
ERROR: Could not find a version that satisfies the requirement torch==2.13.0
ERROR: No matching distribution found for torch==2.13.0
"""


def test_what_a_node_said_is_one_line() -> None:
    said = unready(MESSAGE)
    assert said.startswith("Node 10.0.0.7 could not set up the job's environment: Could not find a version ")
    assert "torch==2.13.0; No matching distribution found for torch==2.13.0. Its runtime_env_setup-*.log" in said
    assert "\n" not in said
    assert unready("").startswith("A node could not set up the job's environment: no reason given. Its ")
    assert unready("[Node a] x\nOSError: no space left").startswith(
        "Node a could not set up the job's environment: OSE"
    )
    assert len(unready("ERROR: " + "no " * 1000)) < LONGEST + 300


def test_errors_of_ray_data_without_words_are_passed_over() -> None:
    """The message was 'SystemException: ' and nothing else."""
    with pytest.raises(JobError, match=r"^Node 10.0.0.7 could not set up .*\nFinished parts are kept"):  # noqa: SIM117
        with translated_errors():
            raise ray.exceptions.RuntimeEnvSetupError(MESSAGE) from ray.data.exceptions.SystemException()
    with pytest.raises(JobError, match=r"^RayActorError: The actor"):  # noqa: SIM117
        with translated_errors():
            raise ray.exceptions.RayActorError from ray.data.exceptions.SystemException()
    with pytest.raises(JobError, match=r"^RayError: \nFinished parts are kept"):  # noqa: SIM117
        with translated_errors():
            raise ray.exceptions.RayError


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a watchdog whose roster raises an error at each look, until it was asked so often, and return it."""
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(RayServers, "of_this_driver", staticmethod(lambda: RayServers([])))
    monkeypatch.setattr(ray, "nodes", lambda: [])

    class Roster:
        num_looks = 0

        def look(self, _: float) -> None:
            self.num_looks += 1
            raise self.error

    def look(error: Exception, num_looks: int) -> watchdog.Watchdog:
        roster: Any = Roster()
        roster.error = error
        with watchdog.Watchdog(
            roster, place(EngineConfig(device="cpu"), Cluster([{"CPU": 2.0}], coming=())), LimitsConfig(), 1.0
        ) as dog:
            deadline = time.monotonic() + 30
            while roster.num_looks < num_looks and time.monotonic() < deadline:
                time.sleep(0.01)
            dog._thread.join(0.1)
        return dog

    return look


def test_a_roster_without_an_environment_ends_the_job(look: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The driver told its traceback every two seconds, and waited for replicas that could not come."""
    dog = look(ray.exceptions.RuntimeEnvSetupError(MESSAGE), 1)
    assert dog.loss() == unready(MESSAGE)
    assert not dog.is_running
    assert not caplog.records


def test_trouble_that_stays_is_told_once_a_minute(look: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        dog = look(TimeoutError("nothing was heard of them for 10 s"), 5)
    assert dog.loss() is None
    assert [record.message for record in caplog.records] == [
        "the watchdog could not look after replicas: TimeoutError: nothing was heard of them for 10 s"
    ]


def test_a_node_that_left_is_named_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Ray tells it by an id, in the middle of two hundred lines of the dead node's log."""
    nodes = [
        {"NodeID": str(number), "NodeManagerAddress": f"10.0.0.{number}", "Resources": {"CPU": 2.0}, "Alive": True}
        for number in range(3)
    ]
    monkeypatch.setattr(RayServers, "of_this_driver", staticmethod(lambda: RayServers([])))
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    roster: Any = None
    placement = place(EngineConfig(device="cpu"), Cluster([{"CPU": 2.0}], coming=()))
    dog = watchdog.Watchdog(roster, placement, LimitsConfig(), 1.0)
    with caplog.at_level(logging.WARNING):
        dog._look_at_nodes()
        nodes[1]["Alive"] = False
        for _ in range(3):
            dog._look_at_nodes()
    assert [record.message for record in caplog.records] == [
        "Node 10.0.0.1 has left the cluster: other replicas compute what its own had."
    ]
