"""Ray Data's prefetcher, without its thread where nothing is prefetched.

By itself it starts one for each dataset that is iterated, and never ends it where `prefetch_batches` is 0: a process
that runs many jobs, such as a notebook, collected one for each.
"""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


@contextmanager
def in_use() -> Iterator[None]:
    """Have Ray Data take it meanwhile, also for others' datasets. Where a version has other names, nothing is done."""
    try:
        iterating: Any = importlib.import_module("ray.data._internal.block_batching.iter_batches")
        eager, kind = iterating.WaitBlockPrefetcher, iterating.BlockPrefetcher
    except (ImportError, AttributeError) as error:
        log.debug("Ray Data's own prefetcher stays: %s", error)
        yield
        return

    class LazyPrefetcher(kind):  # type: ignore[misc, valid-type]
        """Starts Ray's at its first use."""

        def __init__(self) -> None:
            self._started: Any = None

        def prefetch_blocks(self, blocks: list[Any]) -> None:
            if self._started is None:
                self._started = eager()
            self._started.prefetch_blocks(blocks)

        def stop(self) -> None:
            if self._started is not None:
                self._started.stop()

    iterating.WaitBlockPrefetcher = LazyPrefetcher
    try:
        yield
    finally:
        iterating.WaitBlockPrefetcher = eager
