"""A deep check reads every part of an output whole, as Ray tasks: for outputs that one machine reads too slowly."""

from collections.abc import Sequence

import ray

from batchloom.pipelines import cluster
from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.ledger.verification import read_in_threads
from batchloom.pipelines.stores.storage import Store

PARTS_PER_TASK = 64


def deep_check(store: Store, expected: str, records: Sequence[PartRecord]) -> list[str]:
    """Return what is wrong with these parts, from their own bytes. `expected`: their fingerprint.

    Raises: ConfigError where RAY_ADDRESS names no cluster that answers.
    """
    with cluster.connected():
        groups = (records[start : start + PARTS_PER_TASK] for start in range(0, len(records), PARTS_PER_TASK))
        tasks = [_checked.remote(store, expected, group) for group in groups]
        return [problem for problems in ray.get(tasks) for problem in problems]


@ray.remote(num_cpus=1)
def _checked(store: Store, expected: str, records: Sequence[PartRecord]) -> list[str]:
    return read_in_threads(store, expected, records)
