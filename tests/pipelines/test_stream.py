"""What the stream asks of Ray Data."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray.data import Dataset

from batchloom import pipelines
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.running import stream

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Built(Exception):
    """Raised in place of running a job, with its dataset."""


@pytest.fixture
def dataset_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[JobConfig], Dataset]:
    build = stream._dataset

    def raising(*arguments: Any) -> Dataset:
        raise Built(build(*arguments))

    def dataset_of(job: JobConfig) -> Dataset:
        monkeypatch.setattr(stream, "_dataset", raising)
        with pytest.raises(Built) as caught:
            pipelines.run(job)
        (dataset,) = caught.value.args
        return dataset

    return dataset_of


def most_processes(dataset: Dataset) -> list[int | None]:
    """How many may be at work in each stage at once, from the first stage to the last."""
    stage, most = dataset._logical_plan.dag, list[int | None]()
    while stage.input_dependencies:
        compute = stage.compute
        most.append(compute.size if isinstance(compute, ray.data.TaskPoolStrategy) else compute.max_size)
        (stage,) = stage.input_dependencies
    return most[::-1]


def test_readers_leave_cores_to_a_replica_unless_few_of_the_rows_are_chosen(make_job, dataset_of) -> None:
    """This Ray has two CPUs: each process beside the replica took a second of one while it loaded."""
    job = make_job()
    assert most_processes(dataset_of(job)) == [1, 1, 1, 1], "read, tokenize, infer, write"
    chosen = replace(job, input=replace(job.input, where="id < 3"))
    assert most_processes(dataset_of(chosen)) == [None, None, 1, None], "reading may be most of the work"
    sampled = replace(job, input=replace(job.input, sample=0.5))
    assert most_processes(dataset_of(sampled)) == [None, None, 1, None]
