"""A deep check reads every part of an output whole, as Ray tasks: for outputs that one machine reads too slowly."""

import logging
from collections.abc import Sequence

import ray

from batchloom.models.errors import ModelError
from batchloom.pipelines import cluster
from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.errors import PipelineError
from batchloom.pipelines.ledger.verification import read_in_threads
from batchloom.pipelines.stores.storage import Store

log = logging.getLogger(__name__)

PARTS_PER_TASK = 64
TASK_CPUS = 1
LOOK_SECONDS = 5.0  # between two looks at the nodes, which may all leave


def deep_check(store: Store, expected: str, records: Sequence[PartRecord]) -> list[str]:
    """Return what is wrong with these parts, from their own bytes. `expected`: their fingerprint.

    What no node reads, as none has a CPU or the task is lost, is read here.

    Raises:
        ConfigError: RAY_ADDRESS names no cluster that answers.
        StoreError: a store had trouble for too long.
    """
    with cluster.connected():
        groups = [records[start : start + PARTS_PER_TASK] for start in range(0, len(records), PARTS_PER_TASK)]
        tasks = {_checked.remote(store, expected, group): index for index, group in enumerate(groups)}
        found: dict[int, list[str]] = {}
        while tasks:
            done, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=LOOK_SECONDS)
            if not done and not any(node.get("CPU", 0) >= TASK_CPUS for node in cluster.look().nodes):
                log.warning("No node of the cluster has a CPU: %d of %d tasks read here.", len(tasks), len(groups))
                break
            for task in done:
                index = tasks.pop(task)
                found[index] = _result_of(task, store, expected, groups[index])
        for task, index in tasks.items():
            ray.cancel(task, force=True)
            found[index] = read_in_threads(store, expected, groups[index])
        return [problem for index in sorted(found) for problem in found[index]]


def _result_of(task: "ray.ObjectRef[list[str]]", store: Store, expected: str, group: Sequence[PartRecord]) -> list[str]:
    """Return what a task found; where it was lost, what is found here. Raises: as `deep_check`."""
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, PipelineError | ModelError):
            raise cause from error
        log.warning("A task of the deep check was lost (%s): its parts are read here.", type(error).__name__)
        return read_in_threads(store, expected, group)


@ray.remote(num_cpus=TASK_CPUS, max_retries=0)  # or Ray tries again without an end where memory lacks
def _checked(store: Store, expected: str, records: Sequence[PartRecord]) -> list[str]:
    return read_in_threads(store, expected, records)
