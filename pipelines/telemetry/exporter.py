"""Exporters hand a job's figures to Ray, which offers them to Prometheus on each node. They are called once a unit or
every few seconds, never in a step."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ray.util.metrics import Counter, Gauge

from batchloom.pipelines.counts import UnitRecord
from batchloom.pipelines.metrics import Event, Replicas, UnitFailed
from batchloom.pipelines.telemetry.activity import Activity
from batchloom.pipelines.telemetry.measures import PADDED_TOKENS, PROMPT_TOKENS, Increments, stage_seconds
from batchloom.pipelines.telemetry.metrics_table import DRIVERS, OF_EACH, REPLICAS, Labels, Metric
from batchloom.pipelines.telemetry.usage import Usage


class Exporter:
    """Some metrics of a job."""

    def __init__(self, metrics: Mapping[str, Metric], labels: Labels) -> None:
        self._labels = labels.values()
        self._metrics: dict[str, Any] = {
            name: (Counter if name.endswith("_total") else Gauge)(
                name.removesuffix("_total"), one.help, (*OF_EACH, *one.labels)
            )
            for name, one in metrics.items()
        }

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._metrics[name].set(value, {**self._labels, **labels})

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter."""
        if value > 0:  # Ray refuses 0
            self._metrics[name].inc(value, {**self._labels, **labels})


class JobExporter:
    """The driver's."""

    def __init__(self, labels: Labels, num_rows: int) -> None:
        """`num_rows`: that this run has to answer or leave out."""
        self._exporter, self._num_left, self._num_failed = Exporter(DRIVERS, labels), num_rows, 0
        self._exporter.set("batchloom_rows_left", num_rows)
        self._exporter.set("batchloom_failed_units", 0)

    def made(self, made: Any, measures: Mapping[str, float]) -> None:
        """Take note of what became of a unit or a part."""
        exporter = self._exporter
        for stage, seconds in stage_seconds(measures).items():
            exporter.add("batchloom_stage_seconds_total", seconds, stage=stage)
        match made:
            case UnitRecord():
                self._num_left -= made.num_covered
                exporter.set("batchloom_rows_left", self._num_left)
                exporter.add("batchloom_units_total", 1)
                exporter.add("batchloom_rows_total", made.num_rows)
                exporter.add("batchloom_left_out_rows_total", made.num_covered - made.num_rows)
                exporter.add("batchloom_input_tokens_total", made.num_input_tokens)
                exporter.add("batchloom_output_tokens_total", made.num_output_tokens)
                exporter.add("batchloom_truncated_tokens_total", made.num_truncated_tokens)
                exporter.add("batchloom_prompt_tokens_total", measures.get(PROMPT_TOKENS, 0))
                exporter.add("batchloom_padded_tokens_total", measures.get(PADDED_TOKENS, 0))
                for kind, count in made.errors_by_kind.items():
                    exporter.add("batchloom_errors_total", count, kind=kind)
            case UnitFailed():
                self._num_failed += 1
                exporter.set("batchloom_failed_units", self._num_failed)
            case _:
                exporter.add("batchloom_parts_total", 1)

    def saw(self, event: Event) -> None:
        """Take note of how many replicas there are."""
        if isinstance(event, Replicas):
            self._exporter.set("batchloom_replicas", event.num_ready, state="alive")
            self._exporter.set("batchloom_replicas", event.num_starting, state="pending")
            self._exporter.set("batchloom_units_in_flight", event.num_units)


class ReplicaExporter:
    """A replica's own."""

    def __init__(self, labels: Labels, replica: str) -> None:
        self._exporter, self._replica = Exporter(REPLICAS, labels), replica
        self._usage, self._activity = Usage(), dict[str, float]()
        self._increments = Increments(lambda: {**asdict(self._usage), **self._activity})

    def tell(self, usage: Usage, activity: Activity | None) -> None:
        """Export what the replica did so far; `activity` is None until its model is loaded."""
        exporter, replica, self._usage = self._exporter, self._replica, usage
        if activity is not None:
            self._activity = {"steps": activity.num_steps}
            exporter.set("batchloom_running_sequences", activity.num_running_sequences, replica=replica)
            exporter.set("batchloom_waiting_requests", activity.num_waiting_requests, replica=replica)
            for state, num in (("used", activity.num_cached_tokens), ("limit", activity.max_cached_tokens)):
                exporter.set("batchloom_cache_tokens", num, replica=replica, state=state)
            for state, num in (("used", activity.num_blocks), ("allocated", activity.max_blocks)):
                exporter.set("batchloom_cache_blocks", num, replica=replica, state=state)
        for name, value in self._increments.take().items():
            if name == "steps":
                exporter.add("batchloom_steps_total", value, replica=replica)
            else:
                exporter.add("batchloom_replica_seconds_total", value, replica=replica, state=name)
