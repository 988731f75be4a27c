"""What a job says while nothing is finished."""

from typing import Any

import pytest

from batchloom.jobs.terminal.output import event_values
from batchloom.jobs.terminal.progress_line import PlainLines
from batchloom.jobs.terminal.silence import replica_ended, waiting
from batchloom.pipelines.metrics import ReplicaEnded, ReplicaSight, Waiting
from batchloom.pipelines.watching.progress import Progress


def sight(**changes: Any) -> ReplicaSight:
    values: dict[str, Any] = {
        "node": "10.0.0.2", "process_id": 7, "is_ready": True, "is_alive": True, "heard_seconds": 1.0,
        "progress_seconds": 40.0, "units": ("a-0-10", "a-10-20"), "unit_seconds": 45.0,
    }  # fmt: skip
    return ReplicaSight(**values | changes)


@pytest.mark.parametrize(
    ("replicas", "said"),
    [
        (
            [sight()],
            "Process 7 on 10.0.0.2 computes a-0-10, a-10-20 since 45 s, last step 40 s ago. 1 replica alive.",
        ),
        (
            [sight(is_alive=False, heard_seconds=30.0)],
            "Process 7 on 10.0.0.2, silent for 30 s, had a-0-10, a-10-20 since 45 s. 0 of 1 replicas alive, "
            "1 pending or starting again.",
        ),
        (
            [sight(is_ready=False, units=())],
            "Process 7 on 10.0.0.2 loads the model. 1 replica alive.",
        ),
        (
            [sight(node="", is_alive=False)],
            "A replica whose node is gone had a-0-10, a-10-20 since 45 s. 0 of 1 replicas alive, "
            "1 pending or starting again.",
        ),
        (
            [sight(units=())],
            "No replica computes: input is read or tokenized, or parts are written. 1 replica alive.",
        ),
        (
            [],
            "No replica is there yet: Ray starts its process, and before it the environment of shipped code. "
            "0 of 1 replicas alive, 1 pending or starting again.",
        ),
    ],
)
def test_a_silence_is_explained_by_what_replicas_do(replicas: list[ReplicaSight], said: str) -> None:
    assert waiting(Waiting(50.0, tuple(replicas), 1, ())) == f"No part was finished for 50 s. {said}"


def test_what_the_cluster_lacks_is_said_and_many_replicas_are_counted() -> None:
    text = waiting(Waiting(50.0, (sight(),) * 8, 9, ("a replica needs 1 GPU, the cluster has 0",)))
    assert text.count("Process 7") == 3
    assert text.endswith(
        "5 more replicas are at work. 8 of 9 replicas alive, 1 pending or starting again. "
        "A replica needs 1 GPU, the cluster has 0."
    )


def test_a_pool_that_has_grown_has_all_of_its_replicas() -> None:
    """2 of 1 replicas were alive."""
    assert waiting(Waiting(50.0, (sight(), sight()), 1, ())).endswith(" 2 replicas alive.")


def test_parts_that_are_assembled_are_named() -> None:
    event = Waiting(40.0, (), 0, (), assembling=("part-a", "part-b", "part-c", "part-d"))
    assert waiting(event) == (
        "No part was finished for 40 s. All rows are computed; parts are assembled: part-a, part-b, part-c and 1 more."
    )


def test_a_wait_for_a_node_says_what_for_and_for_how_long() -> None:
    lack = "a replica needs 1 GPU, the cluster has 0 GPUs, room for 0 of 1"
    assert waiting(Waiting(0.0, (), 1, (lack,), seconds_left=1800.0)) == (
        "Waiting for a node that can hold a replica. A replica needs 1 GPU, the cluster has 0 GPUs, room for 0 of 1. "
        "The job fails in 30 min 00 s (engine.replicas.wait_minutes)."
    )
    lack = "assembling parts needs logical CPUs, the cluster has none; 1 of 2 nodes are gone"
    assert waiting(Waiting(0.0, (), 0, (lack,), seconds_left=1800.0, assembling=("part-a",))) == (
        "Waiting for a node that can assemble parts: all rows are computed. Assembling parts needs logical CPUs, the "
        "cluster has none; 1 of 2 nodes are gone. The job fails in 30 min 00 s (engine.replicas.wait_minutes)."
    )
    gone = sight(node="", is_alive=False)
    text = waiting(Waiting(20.0, (gone, sight(units=())), 2, (lack,), seconds_left=60.0))
    assert "A replica whose node is gone had a-0-10, a-10-20 since 45 s. The job fails in 1 min 00 s" in text


def test_an_ended_replica_is_named_with_what_it_computed() -> None:
    ended = ReplicaEnded("10.0.0.2", 7, "it made no step for 900 s although it has work", ("a", "b", "c", "d"))
    assert replica_ended(ended) == (
        "The replica on 10.0.0.2 (process 7) was ended, as it made no step for 900 s although it has work. "
        "a, b, c and 1 more will be computed again."
    )


def test_a_log_and_json_have_it_at_once() -> None:
    told: list[str] = []
    watch = PlainLines(Progress(), told.append)
    events = Waiting(50.0, (sight(),), 1, ()), ReplicaEnded("n", 7, "it is silent", ())
    for event in events:
        watch(event)
    assert told == [waiting(events[0]), replica_ended(events[1])]
    assert event_values(events[0])["replicas"][0]["process_id"] == 7
    assert [event_values(event)["event"] for event in events] == ["waiting", "replica_ended"]
