"""What metrics cost: the driver's calls for a unit, and a replica's every two seconds. Nothing is called in a step.

python -m benchmarks.metrics
"""

import argparse
import time
from collections.abc import Callable

from batchloom.pipelines import cluster
from batchloom.pipelines.counts import UnitRecord
from batchloom.pipelines.telemetry.activity import Activity
from batchloom.pipelines.telemetry.exporter import JobExporter, ReplicaExporter
from batchloom.pipelines.telemetry.measures import STAGES
from batchloom.pipelines.telemetry.metrics_table import Labels
from batchloom.pipelines.telemetry.usage import Usage
from batchloom.pipelines.watching.roster import REPORT_SECONDS
from benchmarks import record

CALLS = 2000
SHARE = 0.005  # of a job's time, which metrics may cost
RECORD = UnitRecord(
    part="p", ranges=((0, 1024),), num_rows=1000, num_errors=3, num_input_tokens=300_000, num_output_tokens=60_000,
    num_truncated_tokens=10, errors_by_kind={"null_text": 2, "too_long": 1},
)  # fmt: skip
MEASURES = {**dict.fromkeys(STAGES.values(), 0.1), "engine_prompt_tokens": 300_000, "engine_padded_tokens": 310_000}


def seconds_of(call: Callable[[int], None]) -> float:
    began = time.perf_counter()
    for number in range(1, CALLS + 1):
        call(number)
    return (time.perf_counter() - began) / CALLS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    record.add_options(parser)
    options = parser.parse_args()
    labels = Labels.of("s3://bucket/summaries")
    with cluster.connected():
        driver, replica = JobExporter(labels, 1 << 30), ReplicaExporter(labels, "replica")

        def tell(number: int) -> None:
            activity = Activity(busy_seconds=number, num_steps=number, num_prompt_tokens=0, num_padded_tokens=0)
            replica.tell(Usage(float(number), float(number), float(number), float(number)), activity)

        unit = seconds_of(lambda _: driver.made(RECORD, MEASURES))
        report = seconds_of(tell)
    least = unit / SHARE * 1e3
    print(f"a unit, in the driver   {unit * 1e6:6.1f} us, under {SHARE:.1%} of units that take {least:.0f} ms and more")
    print(f"a report, in a replica  {report * 1e6:6.1f} us, {report / REPORT_SECONDS:.4%} of its time")
    figures = [
        record.Figure(system="batchloom", what="metrics of a unit, in the driver", value=unit * 1e6, unit="us"),
        record.Figure(system="batchloom", what="a report, in a replica", value=report * 1e6, unit="us"),
    ]
    record.write(options.results, "metrics", "what metrics cost", {"calls": CALLS}, figures)


if __name__ == "__main__":
    main()
