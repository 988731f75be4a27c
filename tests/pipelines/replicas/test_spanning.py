"""Placement groups last as long as a job, however it ends."""

import pytest

from batchloom.pipelines.config import EngineConfig, ReplicasConfig
from batchloom.pipelines.replicas.placement import Cluster, place
from batchloom.pipelines.replicas.spanning import groups


def states() -> list[str]:
    from ray.util import placement_group_table

    return [group["state"] for group in placement_group_table().values()]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_groups_are_removed_after_a_job_that_failed_or_was_interrupted(error: type[BaseException]) -> None:
    engine = EngineConfig(device="cpu", reserve_gpus=True, tensor_parallel=2, replicas=ReplicasConfig(max=2))

    def job() -> None:
        with groups(place(engine, Cluster([{"CPU": 8, "GPU": 1}] * 4))) as made:
            assert len(made) == states().count("PENDING") == 2
            raise error

    with pytest.raises(error):
        job()
    assert set(states()) == {"REMOVED"}


def test_replicas_of_one_node_need_no_group() -> None:
    with groups(place(EngineConfig(tensor_parallel=2), Cluster([{"CPU": 8, "GPU": 2}]))) as made:
        assert made == []
