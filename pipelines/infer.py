"""Infer is the actor that Ray keeps a pool of: one replica, several units in flight. Policy is the engine's."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipelines.metrics import READY_AT
from pipelines.replica import start_replica
from pipelines.work import Work


class Infer:
    """Callable class for `map_batches`: units with requests in, units with results out."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._replica = start_replica(**settings)
        self._ready_at = time.time()

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        work = Work.from_batch(batch)
        assert work.requests is not None
        results = self._replica.answer(work.unit, work.requests)
        measures = {**self._replica.measures(), READY_AT: self._ready_at}
        yield work.with_results(results, measures).to_batch()
