"""A cluster that is too young to start a job is waited for, and one that cannot start it says so in a line."""

from types import SimpleNamespace

import pytest

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
