"""Replicas find room, now or when nodes come, or the message says what is there. Ranks have threads by their node."""

import math

import pytest

from batchloom.pipelines.config import EngineConfig, ReplicasConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.replicas.placement import STAGE_CPUS, Cluster, NodeKind, Placement, place

GPUS = [{"CPU": 16, "GPU": 4}, {"CPU": 16, "GPU": 4}, {"CPU": 4, "GPU": 1}]
HEAD = {"CPU": 0}
NINE = "the cluster has 9 GPUs on 3 nodes, at most 4 on one"
CPUS = "the cluster has 36 logical CPUs"


def engine(num_ranks=1, least=1, most=1, **others):
    return EngineConfig(tensor_parallel=num_ranks, replicas=ReplicasConfig(min=least, max=max(least, most)), **others)


def closed(*nodes) -> Cluster:
    """A cluster that no node can join, such as a Ray that was started for the job."""
    return Cluster(nodes, coming=())


def scaled(*nodes, kinds) -> Cluster:
    """A cluster whose autoscaler may add nodes."""
    return Cluster(nodes, [NodeKind(resources, most) for resources, most in kinds])


@pytest.mark.parametrize(
    ("asked", "cluster", "device", "num_gpus"),
    [
        (engine(), closed(*GPUS), "cuda", 1),
        (engine(), closed({"CPU": 4}), "cpu", 0),
        (engine(device="cpu"), closed(*GPUS), "cpu", 0),
        (engine(dtype="int8"), closed(*GPUS), "cpu", 0),  # which is for CPUs alone
        (engine(), Cluster([{"CPU": 4}]), "cpu", 0),  # nobody knows of GPUs
        (engine(device="cuda"), Cluster([{"CPU": 4}]), "cuda", 1),  # they may come
        (engine(), scaled({"CPU": 4}, kinds=[({"CPU": 8, "GPU": 1}, 2)]), "cuda", 1),  # none is up yet
        (engine(), scaled(*GPUS, kinds=[({"CPU": 64}, 9)]), "cuda", 1),
    ],
)
def test_an_accelerator_is_used_where_there_is_one_or_one_may_come(asked, cluster, device, num_gpus):
    found = place(asked, cluster)
    assert (found.device, found.num_gpus) == (device, num_gpus)


@pytest.mark.parametrize(
    ("asked", "cluster", "most"),
    [
        (engine(), closed({"CPU": 2}), 1),
        (engine(), closed({"CPU": 9}), 4),
        (engine(), closed({"CPU": 1}), 1),
        (engine(), closed({"CPU": 16, "GPU": 4}), None),  # replicas take no CPU from them
        (engine(), closed({"CPU": 2}, {"CPU": 2}), None),
        (engine(), Cluster([{"CPU": 2}]), None),  # nodes may come
    ],
)
def test_processes_that_read_leave_a_single_nodes_cpus_to_its_replicas(asked, cluster, most):
    assert place(asked, cluster).most_readers(cluster) == most


def test_a_rehearsal_on_cpus_holds_the_gpus_of_the_real_thing():
    found = place(engine(4, device="cpu", reserve_gpus=True), closed(*GPUS))
    assert (found.device, found.num_gpus, found.num_cpus, found.gpu_share) == ("cpu", 4, 0, 1)


def test_as_many_replicas_have_room_as_nodes_hold_whole_ones():
    assert place(engine(4), closed(*GPUS)).room(GPUS) == 2
    assert place(engine(3), closed(*GPUS)).room(GPUS) == 2
    assert place(engine(1), closed(*GPUS)).room(GPUS) == 9
    assert place(engine(1), closed({"CPU": 2})).room([{"CPU": 2}]) == 3
    assert place(engine(4), closed({"CPU": 8})).room([{"CPU": 1}] * 8) == 0


def test_the_pool_is_what_the_job_asks_for_whatever_is_there_now():
    found = place(engine(least=2, most=100), Cluster([HEAD]))
    assert (found.min_replicas, found.max_replicas) == (2, 100)
    found = place(engine(least=4, most=100, device="cuda"), Cluster([*GPUS[2:]]))
    assert (found.pool_min, found.max_replicas) == (4, 100)


@pytest.mark.parametrize("num_cpus", [0, 0.5, 1, 2, 3, 64])
def test_replicas_on_cpus_leave_some_to_the_other_stages_while_nodes_are_few(num_cpus):
    found = place(engine(least=100, most=100), Cluster([{"CPU": num_cpus}]))
    assert found.pool_min >= 1
    left = num_cpus - found.pool_min * found.num_cpus
    assert left >= 2 * STAGE_CPUS or found.room([{"CPU": num_cpus}]) == 0


@pytest.mark.parametrize(("share", "num_held"), [(1.0, 8), (0.5, 16), (0.3, 24), (0.1, 80)])
def test_eight_gpus_with_four_cpus_hold_whatever_their_gpus_hold(share, num_held):
    nodes = [{"CPU": 4, "GPU": 8}]
    found = place(engine(most=99, gpus_per_replica=share), closed(*nodes))
    assert (found.room(nodes), found.num_gpus, found.num_cpus, found.gpu_share) == (num_held, share, 0, share)


def test_ranks_span_nodes_where_no_node_has_as_many_gpus():
    found = place(engine(6, most=2), closed(*GPUS))
    assert (found.spans_nodes, found.room(GPUS), found.num_gpus, found.num_cpus) == (True, 1, 0, 0)
    assert not place(engine(4), closed(*GPUS)).spans_nodes
    assert not place(engine(8, device="cpu"), closed({"CPU": 8})).spans_nodes
    assert not place(engine(8), scaled(*GPUS, kinds=[({"CPU": 8, "GPU": 8}, math.inf)])).spans_nodes
    assert not place(engine(2, device="cuda"), Cluster([HEAD])).spans_nodes  # nobody knows what comes


@pytest.mark.parametrize(
    ("asked", "node", "nodes", "num_threads"),
    [
        (engine(device="cpu"), {"CPU": 64}, [HEAD, {"CPU": 64}], 64),  # a head without CPUs holds none
        (engine(most=4, device="cpu"), {"CPU": 64}, [HEAD, {"CPU": 64}, {"CPU": 8}], 32),
        (engine(most=4, device="cpu"), {"CPU": 8}, [HEAD, {"CPU": 64}, {"CPU": 8}], 4),
        (engine(2, most=2, device="cpu"), {"CPU": 3}, [{"CPU": 3}], 1),
        (engine(most=100, device="cpu"), {"CPU": 2}, [{"CPU": 2}], 1),
        (engine(most=99), {"CPU": 4, "GPU": 8}, GPUS, 1),
        (engine(most=99), {"CPU": 64, "GPU": 8}, [HEAD, {"CPU": 64, "GPU": 8}], 8),
        (engine(most=1), {"CPU": 64, "GPU": 8}, [HEAD, {"CPU": 64, "GPU": 8}], 64),  # no other rank can come here
        (engine(most=99, gpus_per_replica=0.5), {"CPU": 64, "GPU": 8}, GPUS, 4),
        (engine(2, most=99), {"CPU": 64, "GPU": 8}, GPUS, 8),
        (engine(6, most=1), {"CPU": 16, "GPU": 4}, GPUS, 4),  # spans nodes of unlike size
        (engine(6, most=1), {"CPU": 4, "GPU": 1}, GPUS, 4),
        (engine(most=2), {"GPU": 1}, GPUS, 1),
    ],
)
def test_a_rank_has_its_share_of_its_own_node(asked, node, nodes, num_threads):
    found: Placement = place(asked, closed(*GPUS, {"CPU": 64}))
    assert found.threads_per_rank(node, nodes) == num_threads


@pytest.mark.parametrize(
    ("asked", "cluster", "message"),
    [
        (
            engine(16),
            closed(*GPUS),
            "engine.replicas.min is 1: a replica of 16 ranks needs 16 GPUs, the cluster has 9 GPUs on 3 nodes, at most "
            "4 on one, room for 0 of 1. Use fewer ranks, add GPUs, or set engine.device: cpu.",
        ),
        (
            engine(2),
            closed({"CPU": 4, "GPU": 1}),
            "engine.replicas.min is 1: a replica of 2 ranks needs 2 GPUs, the cluster has 1 GPU, room for 0 of 1. "
            "Use fewer ranks, add GPUs, or set engine.device: cpu.",
        ),
        (
            engine(4, 3, 3),
            closed(*GPUS),
            "engine.replicas.min is 3: a replica of 4 ranks needs 4 GPUs of one node, the cluster has 9 GPUs on 3 "
            "nodes, at most 4 on one, room for 2 of 3. Lower engine.replicas.min, use fewer ranks, add GPUs, or set "
            "engine.device: cpu.",
        ),
        (
            engine(device="cuda"),
            closed({"CPU": 4}),
            "engine.replicas.min is 1: a replica needs 1 GPU, the cluster has 0 GPUs, room for 0 of 1. Add GPUs or set "
            "engine.device: cpu.",
        ),
        (
            engine(least=3, gpus_per_replica=0.5),
            closed({"CPU": 4, "GPU": 1}),
            "engine.replicas.min is 3: a replica needs 0.5 GPUs, the cluster has 1 GPU, room for 2 of 3. Lower "
            "engine.replicas.min, add GPUs, or set engine.device: cpu.",
        ),
        (
            engine(8, device="cpu"),
            closed({"CPU": 4}),
            "engine.replicas.min is 1: a replica of 8 ranks needs 4 logical CPUs, the cluster has 4 logical CPUs, room "
            "for 0 of 1. Use fewer ranks or give Ray more CPUs.",
        ),
        (
            engine(),
            closed({"GPU": 1}),
            "engine.replicas.min is 1: reading and writing need 0.5 logical CPUs, the cluster has 0. Give Ray more "
            "CPUs.",
        ),
        (
            engine(4, device="cuda"),
            scaled({"CPU": 4}, kinds=[({"CPU": 8, "GPU": 1}, 2), ({"CPU": 64}, 10)]),
            "engine.replicas.min is 1: a replica of 4 ranks needs 4 GPUs, the cluster has 0 GPUs, room for 0 of 1. Its "
            "autoscaler may add 12 nodes with at most 1 GPUs and 64 CPUs each. Use fewer ranks, add GPUs, or set "
            "engine.device: cpu.",
        ),
    ],
)
def test_what_never_can_have_room_is_refused_with_what_is_there(asked, cluster, message):
    with pytest.raises(ConfigError) as refused:
        place(asked, cluster)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "cluster",
    [
        Cluster([HEAD]),
        Cluster([]),
        scaled(HEAD, kinds=[({"CPU": 8, "GPU": 4}, 1)]),
        scaled(HEAD, kinds=[({"CPU": 8, "GPU": 4}, math.inf)]),
    ],
)
def test_what_may_have_room_once_nodes_come_is_not_refused(cluster):
    found = place(engine(4, device="cuda"), cluster)
    assert found.room(cluster.nodes) == 0
    assert any("a replica of 4 ranks needs 4 GPUs of one node" in lack for lack in found.lacking(cluster.nodes))


def test_lacks_are_told_for_the_nodes_that_are_left():
    found = place(engine(least=4, gpus_per_replica=0.5), Cluster([{"CPU": 4, "GPU": 1}] * 2))
    assert found.lacking([{"CPU": 4, "GPU": 1}] * 2) == []
    assert found.lacking([{"CPU": 4, "GPU": 1}], num_gone=1) == [
        "a replica needs 0.5 GPUs, the cluster has 1 GPU, room for 2 of 4; 1 of 2 nodes are gone"
    ]
    assert found.lacking([], num_gone=2) == [
        "reading and writing need 0.5 logical CPUs, the cluster has 0; 2 of 2 nodes are gone",
        "a replica needs 0.5 GPUs, the cluster has 0 GPUs, room for 0 of 4; 2 of 2 nodes are gone",
    ]


@pytest.mark.parametrize(
    ("asked", "free", "said"),
    [
        (engine(device="cuda"), {"GPU": 1.0, "CPU": 0.0}, []),
        (engine(device="cuda"), {"CPU": 9.0}, [f"a replica needs 1 GPU, {NINE}, 0 free"]),
        (engine(device="cuda", gpus_per_replica=0.5), {"GPU": 0.5}, []),
        (engine(2, device="cuda"), {"GPU": 1.0}, [f"a replica of 2 ranks needs 2 GPUs of one node, {NINE}, 1 free"]),
        (engine(device="cpu"), {"CPU": 0.5}, []),
        (engine(device="cpu"), {"CPU": 0.25}, [f"a replica needs 0.5 logical CPUs, {CPUS}, 0.25 free"]),
    ],
)
def test_what_others_hold_is_said(asked, free, said) -> None:
    """A job whose GPUs another one held said that input was read."""
    assert place(asked, Cluster(GPUS)).taken(GPUS, free) == said
