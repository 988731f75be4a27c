"""Workers of the tests' Ray are forked from one that has imported what they import, and none is another's double."""

import os
import sys

import pytest
import ray

NUM_STARTED_BEFORE = 2  # Ray starts a worker for each CPU before the server is there


class Worker:
    def looks(self) -> dict[str, str]:
        return {
            "has imported": str("torch" in sys.modules),
            "group": str(os.getpgrp()),
            "parent": str(os.getppid()),
            "job": os.environ["RAY_JOB_ID"],
            "first random number": ray.ObjectRef.from_random().hex(),
        }


@pytest.mark.usefixtures("ray_cluster")
def test_forked_workers_share_what_is_imported_and_nothing_else() -> None:
    """Ray's generator of names was seeded before the fork: all children called their objects alike."""
    kind = ray.remote(num_cpus=0)(Worker)
    workers = [kind.remote() for _ in range(NUM_STARTED_BEFORE + 2)]
    looks = ray.get([worker.looks.remote() for worker in workers], timeout=60)
    forked = [look for look in looks if look["has imported"] == "True"]
    assert len(forked) >= 2
    assert {look["job"] for look in forked} == {ray.get_runtime_context().get_job_id()}
    assert len({look["parent"] for look in forked}) == 1
    for what in ("group", "first random number"):
        assert len({look[what] for look in forked}) == len(forked), what
