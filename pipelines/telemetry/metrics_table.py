"""The metrics that a job exports, by name. Ray puts `ray_` in front of each. docs/deploy.md has them as a table."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from urllib.parse import quote

from batchloom.models.redaction import redacted

OF_EACH = ("job_name", "output")


@dataclass(frozen=True)
class Labels:
    """What each metric of a job has as labels, in ASCII: Ray's metrics raise for anything else."""

    job_name: str
    """The last folder of the output."""
    output: str
    """Its URL, without credentials; letters beyond ASCII as %C3%A9."""

    @staticmethod
    def of(output: str) -> "Labels":
        url = "".join(
            letter if letter.isascii() else quote(letter, errors="replace") for letter in redacted(output).rstrip("/")
        )
        return Labels(url.rpartition("/")[2] or url, url)

    def values(self) -> dict[str, str]:
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True)
class Metric:
    """A metric: a counter where its name ends in _total, else a gauge."""

    help: str
    labels: tuple[str, ...] = ()
    """Beside OF_EACH."""


DRIVERS: Mapping[str, Metric] = {
    "batchloom_rows_total": Metric("Rows whose answer, or error, is safe."),
    "batchloom_left_out_rows_total": Metric("Rows that input.where and input.sample leave out."),
    "batchloom_errors_total": Metric("Rows with an error.", ("kind",)),
    "batchloom_input_tokens_total": Metric("Tokens read of these rows."),
    "batchloom_output_tokens_total": Metric("Tokens written for these rows."),
    "batchloom_truncated_tokens_total": Metric("Tokens of these rows that were cut off."),
    "batchloom_prompt_tokens_total": Metric("Prompt tokens that models computed."),
    "batchloom_padded_tokens_total": Metric("Positions computed for them, padding included."),
    "batchloom_units_total": Metric("Units whose answers are safe."),
    "batchloom_parts_total": Metric("Output files that were written."),
    "batchloom_stage_seconds_total": Metric("Seconds of all workers in a stage.", ("stage",)),
    "batchloom_failed_units": Metric("Units and parts that failed in this run."),
    "batchloom_rows_left": Metric("Rows that this run has still to answer or leave out."),
    "batchloom_units_in_flight": Metric("Units that replicas compute."),
    "batchloom_replicas": Metric("Replicas, by state: alive or pending.", ("state",)),
}
"""Exported by the driver, of what is written: they add up to the manifest."""

REPLICAS: Mapping[str, Metric] = {
    "batchloom_replica_seconds_total": Metric(
        "Seconds of a replica: loading, computing, waiting, overhead.", ("replica", "state")
    ),
    "batchloom_steps_total": Metric("Decode steps of a replica, or batches.", ("replica",)),
    "batchloom_running_sequences": Metric("Sequences that grow now.", ("replica",)),
    "batchloom_waiting_requests": Metric("Requests that wait for room.", ("replica",)),
    "batchloom_cache_tokens": Metric("Tokens of the KV cache: used (held or reserved), limit.", ("replica", "state")),
    "batchloom_cache_blocks": Metric("Blocks of a GPU's KV cache: used, allocated.", ("replica", "state")),
}
"""Exported by each replica every few seconds; what was not exported yet is lost with it."""

METRICS: Mapping[str, Metric] = {**DRIVERS, **REPLICAS}
