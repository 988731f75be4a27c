from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.pipelines.config import EngineConfig, InputConfig, JobConfig, LimitsConfig, OutputConfig, ReplicasConfig
from tests.local_ray import local_ray


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all jobs of this folder: a start takes seconds, and a job takes a running one as it is."""
    with local_ray():
        yield


@pytest.fixture
def make_job(checkpoint: str, corpus: Path, tmp_path: Path) -> Callable[..., JobConfig]:
    def make(**changes: Any) -> JobConfig:
        values = {
            "output": str(tmp_path / "out"), "mode": "resume", "rows_per_unit": 10, "rows_per_part": None,
            "replicas": 1, "max_error_rate": 1.0, "max_degenerate_rate": 1.0,
            "generation": {"num_beams": 2, "max_length": 16, "min_length": 2}, "task_options": {}, "keep_columns": None,
            "paths": (str(corpus),), "text_column": "text",  "task": "summarization",
            "model": checkpoint,
            "storage_options": {},
        } | changes  # fmt: skip
        options = values["storage_options"]
        return JobConfig(
            task=values["task"],
            model=values["model"],
            input=InputConfig(
                paths=values["paths"],
                text_column=values["text_column"],
                keep_columns=values["keep_columns"],
                rows_per_unit=values["rows_per_unit"],
                storage_options=options,
            ),
            output=OutputConfig(
                path=values["output"],
                mode=values["mode"],
                rows_per_part=values["rows_per_part"] or values["rows_per_unit"],  # a part a unit, unless asked
                storage_options=options,
            ),
            generation=values["generation"],
            task_options=values["task_options"],
            engine=EngineConfig(
                dtype="float32", replicas=ReplicasConfig(min=values["replicas"], max=values["replicas"])
            ),
            limits=LimitsConfig(
                max_error_rate=values["max_error_rate"], max_degenerate_rate=values["max_degenerate_rate"]
            ),
        )

    return make


def read_output(folder: str | Path) -> pa.Table:
    """The output as any reader opens it, in the order of ids."""
    return pq.read_table(folder).sort_by("id")


@pytest.fixture
def output_table() -> Callable[[str | Path], pa.Table]:
    return read_output
