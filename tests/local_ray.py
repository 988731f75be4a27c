"""A Ray of the tests' process, for all of its jobs: a start takes seconds."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def local_ray() -> Iterator[None]:
    """Start a Ray like one that a job starts for itself. Jobs in the context take it as it is."""
    import ray

    from batchloom.pipelines.own_ray import SETTINGS

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
