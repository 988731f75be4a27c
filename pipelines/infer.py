"""Infer is the actor that Ray keeps a pool of: one replica, several units in flight. Policy is the engine's."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipelines.replica import start_replica
from pipelines.work import Work


class Infer:
    """Callable class for `map_batches`: units with requests in, units with results out."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._replica = start_replica(**settings)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        work = Work.from_batch(batch)
        assert work.requests is not None
        results = self._replica.answer(work.unit, work.requests)
        yield work.with_results(results, self._replica.measures()).to_batch()
