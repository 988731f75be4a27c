"""A job on a cluster that is too young, cannot start it, breaks connections, or goes away."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from batchloom.jobs.exit_codes import ExitCode
from batchloom.jobs.remote import ray_job
from batchloom.jobs.remote.ray_job import RayJob
from batchloom.jobs.remote.submission import _when_ready
from batchloom.pipelines.errors import JobError

TOO_YOUNG = "Request failed with status code 500: No available agent to submit job, please try again later.."


class Cluster:
    """Starts a job after so many refusals."""

    def __init__(self, num_refusals: float, message: str = TOO_YOUNG) -> None:
        self.num_refusals, self.message, self.num_asked = num_refusals, message, 0

    def submit(self) -> str:
        self.num_asked += 1
        if self.num_asked <= self.num_refusals:
            raise RuntimeError(self.message)
        return "id"


def test_a_cluster_that_started_a_moment_ago_is_asked_again() -> None:
    """Its dashboard answered, and the first submit after `ray up` failed with a 500."""
    cluster = Cluster(num_refusals=3)
    assert _when_ready(cluster.submit, seconds=3.0) == "id"
    assert cluster.num_asked == 4


def test_a_cluster_that_stays_so_is_a_message() -> None:
    with pytest.raises(JobError, match=r"^The cluster cannot start jobs: for 0 s no agent was ready on its head\."):
        _when_ready(Cluster(float("inf")).submit, seconds=0.0)


def test_any_other_refusal_is_told_at_once() -> None:
    cluster = Cluster(num_refusals=9, message="Request failed with status code 400: no")
    with pytest.raises(RuntimeError, match="400"):
        _when_ready(cluster.submit)
    assert cluster.num_asked == 1


def test_an_environment_that_cannot_be_set_up_is_told_without_the_traceback_of_ray() -> None:
    message = (
        "runtime_env setup failed: Failed to set up runtime environment.\n[Node 10.0.0.7] Traceback (most recent call "
        "last):\n  File ...\n    ERROR: No matching distribution found for torch==9.9\n"
    )
    info = SimpleNamespace(driver_exit_code=None, status="FAILED", message=message)
    said = r"^batchloom-a did not start\. Node 10\.0\.0\.7 could not set up .* found for torch==9\.9\. Its runtime_env_"
    with pytest.raises(JobError, match=said):
        RayJob("batchloom-a", "http://head:8265", client=None)._exit_code(info)


class Dashboard:
    """Ray's client of a dashboard that sends a log in pieces, and breaks the connection after so many at each try."""

    def __init__(self, pieces: list[str], breaks: list[int], answers: bool = True) -> None:
        self.pieces, self.breaks, self.answers, self.num_asked = pieces, breaks, answers, 0

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        num_sent = self.breaks.pop(0) if self.breaks else len(self.pieces)
        for piece in self.pieces[:num_sent]:
            yield piece
        if num_sent < len(self.pieces):
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_info(self, _: str) -> Any:
        if not self.answers:
            raise ConnectionError
        self.num_asked += 1
        status = SimpleNamespace(is_terminal=lambda: not self.breaks or self.num_asked > 9)
        return SimpleNamespace(status=status, driver_exit_code=0, message="")

    def get_job_logs(self, _: str) -> str:
        return "".join(self.pieces)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_job, "STATUS_SECONDS", 0.001)
    monkeypatch.setattr(ray_job, "GONE_SECONDS", 0.01)


@pytest.mark.parametrize("breaks", [[], [2], [0, 2, 1, 3], [3, 0, 0, 0, 0, 0, 0, 0, 0], [1, 2, 3]])
def test_a_log_is_told_once_over_broken_connections(breaks: list[int]) -> None:
    """A proxy that ended a quiet connection ended `attach`, with exit code 1 and a close code."""
    pieces = ["first line\n", "sec", "ond line\n", "third line\n"]
    told: list[str] = []
    assert RayJob("batchloom-a", "http://head:8265", Dashboard(pieces, breaks)).follow(told.append) == ExitCode.OK
    assert "".join(told) == "".join(pieces)


def test_a_cluster_that_goes_away_is_told_with_what_to_do() -> None:
    told: list[str] = []
    gone = RayJob("batchloom-a", "http://head:8265", Dashboard(["a", "b"], [1, 1], answers=False))
    with pytest.raises(
        JobError, match=r"^The cluster at http://head:8265 does not answer any more: .* batchloom status"
    ):
        gone.follow(told.append)
    assert told == ["a"]
