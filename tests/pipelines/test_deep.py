"""A deep check ends whatever becomes of its tasks: what no node reads is read by the process that asked."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions

from batchloom.pipelines.errors import StoreError
from batchloom.pipelines.replicas.placement import Cluster
from batchloom.pipelines.running import deep
from batchloom.pipelines.running.deep import PARTS_PER_TASK, deep_check

RECORDS: Any = [f"part-{number}" for number in range(2 * PARTS_PER_TASK + 1)]
FIRSTS = [RECORDS[0], RECORDS[PARTS_PER_TASK], RECORDS[2 * PARTS_PER_TASK]]


@dataclass
class Tasks:
    """Ray as the check sees it. A task is the name of its first part."""

    errors: dict[str, Exception] = field(default_factory=dict)
    num_cpus: int = 2
    read_here: list[str] = field(default_factory=list)

    def remote(self, _: Any, expected: str, group: Any) -> str:
        assert expected == "f"
        return str(group[0])

    def wait(self, tasks: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        assert num_returns == len(tasks)
        assert timeout > 0
        done = tasks[-1:] if self.num_cpus else []
        return done, [task for task in tasks if task not in done]

    def get(self, task: str) -> list[str]:
        if task in self.errors:
            raise self.errors[task]
        return [f"{task} of a task"]

    def here(self, _: Any, expected: str, group: Any) -> list[str]:
        assert expected == "f"
        self.read_here.append(group[0])
        return [f"{group[0]} here"]


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    tasks = Tasks()
    monkeypatch.setattr(deep, "_checked", tasks)
    monkeypatch.setattr(deep, "read_in_threads", tasks.here)
    monkeypatch.setattr(deep, "cluster", SimpleNamespace(connected=nullcontext, look=lambda: look(tasks)))
    monkeypatch.setattr(deep.ray, "wait", tasks.wait)
    monkeypatch.setattr(deep.ray, "get", tasks.get)
    monkeypatch.setattr(deep.ray, "cancel", lambda *_, **__: None)
    return tasks


def look(tasks: Tasks) -> Cluster:
    return Cluster([{"CPU": tasks.num_cpus}])


def test_problems_come_in_the_order_of_parts(tasks: Tasks) -> None:
    assert deep_check(None, "f", RECORDS) == [f"{first} of a task" for first in FIRSTS]  # type: ignore[arg-type]
    assert tasks.read_here == []


@pytest.mark.parametrize(
    "loss", [exceptions.WorkerCrashedError(), exceptions.NodeDiedError("gone"), exceptions.OutOfMemoryError("killed")]
)
def test_what_a_lost_task_was_to_read_is_read_here(tasks: Tasks, loss: Exception) -> None:
    """The command ended with Ray's traceback."""
    tasks.errors = {FIRSTS[1]: loss}
    found = deep_check(None, "f", RECORDS)  # type: ignore[arg-type]
    assert found == [f"{FIRSTS[0]} of a task", f"{FIRSTS[1]} here", f"{FIRSTS[2]} of a task"]


def test_without_a_node_that_has_a_cpu_everything_is_read_here(tasks: Tasks, caplog: pytest.LogCaptureFixture) -> None:
    """It waited without a word, for ever."""
    tasks.num_cpus = 0
    assert deep_check(None, "f", RECORDS) == [f"{first} here" for first in FIRSTS]  # type: ignore[arg-type]
    assert "No node of the cluster has a CPU: 3 of 3 tasks read here." in caplog.text


def test_trouble_of_a_store_is_said_as_such(tasks: Tasks) -> None:
    trouble = StoreError("The store refuses.")
    tasks.errors = {FIRSTS[0]: exceptions.RayTaskError("_checked", "Traceback ...", trouble)}
    with pytest.raises(StoreError, match="The store refuses"):
        deep_check(None, "f", RECORDS)  # type: ignore[arg-type]
    assert tasks.read_here == []
