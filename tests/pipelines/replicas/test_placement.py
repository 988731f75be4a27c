"""Replicas find room, or the message says what is there."""

import pytest

from batchloom.pipelines.config import EngineConfig, ReplicasConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.replicas.placement import place

GPUS = [{"CPU": 16, "GPU": 4}, {"CPU": 16, "GPU": 4}, {"CPU": 4, "GPU": 1}]


def engine(num_ranks=1, least=1, most=1, **others):
    return EngineConfig(tensor_parallel=num_ranks, replicas=ReplicasConfig(min=least, max=most), **others)


def test_an_accelerator_is_used_where_there_is_one_and_nobody_asked_for_a_cpu():
    assert (place(engine(), GPUS).device, place(engine(), GPUS).num_gpus) == ("cuda", 1)
    assert (place(engine(), [{"CPU": 4}]).device, place(engine(), [{"CPU": 4}]).num_gpus) == ("cpu", 0)
    assert (place(engine(device="cpu"), GPUS).device, place(engine(device="cpu"), GPUS).num_gpus) == ("cpu", 0)


def test_a_rehearsal_on_cpus_holds_the_gpus_of_the_real_thing():
    found = place(engine(4, device="cpu", reserve_gpus=True), GPUS)
    assert (found.device, found.num_gpus, found.num_cpus) == ("cpu", 4, 2.0)


def test_a_pool_grows_as_far_as_whole_replicas_find_room_on_nodes():
    assert place(engine(4, most=9), GPUS).max_replicas == 2
    assert place(engine(3, most=9), GPUS).max_replicas == 2
    assert place(engine(1, most=99), GPUS).max_replicas == 9
    assert place(engine(1, most=99), [{"CPU": 2}]).max_replicas == 3


def test_ranks_span_nodes_where_no_node_has_as_many_gpus():
    found = place(engine(6, most=2), GPUS)
    assert (found.spans_nodes, found.max_replicas, found.num_gpus, found.num_cpus) == (True, 1, 0, 0.5)
    assert not place(engine(4), GPUS).spans_nodes
    assert not place(engine(8, device="cpu"), [{"CPU": 8}]).spans_nodes


def test_ranks_share_the_cores_of_the_smallest_node():
    assert place(engine(2, most=2), [{"CPU": 16}, {"CPU": 8}]).threads_per_rank == 4
    assert place(engine(2, most=2), [{"CPU": 3}]).threads_per_rank == 1


@pytest.mark.parametrize(
    ("asked", "nodes", "message"),
    [
        (
            engine(16),
            GPUS,
            r"of 16 ranks needs 16 GPUs. The cluster has 9 GPUs on 3 nodes \(4, 4, 1\), room for 0. Use",
        ),
        (
            engine(2),
            [{"CPU": 4, "GPU": 1}],
            r"needs 2 GPUs. The cluster has 1 GPU, room for 0. Use fewer ranks, or set",
        ),
        (engine(4, 3, 3), GPUS, r"min is 3: each replica of 4 ranks needs 4 GPUs of one node. .* room for 2. Lower it"),
        (
            engine(device="cuda"),
            [{"CPU": 4}],
            r"each replica needs a GPU. The cluster has 0 GPUs, room for 0. Add GPUs",
        ),
        (engine(2, device="cpu", reserve_gpus=True), [{"CPU": 4}], r"The cluster has 0 GPUs, room for 0."),
        (
            engine(8, device="cpu"),
            [{"CPU": 4}],
            r"4 logical CPUs, room for 0 replicas of 8 ranks .* Use fewer ranks, or",
        ),
    ],
)
def test_no_room_is_said_with_what_is_there(asked, nodes, message):
    with pytest.raises(ConfigError, match=message):
        place(asked, nodes)
