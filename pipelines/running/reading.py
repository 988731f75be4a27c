"""What reads a job's input, by its plan."""

from collections.abc import Iterable

import pyarrow as pa

from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.stages.choose import Choose
from batchloom.pipelines.stages.read import Read
from batchloom.pipelines.stages.reader import Reader


def reader_of(job: JobPlan, columns: Iterable[str]) -> Reader:
    """Return what reads these columns of the input."""
    schema = pa.schema([job.schema.field(name) for name in columns])
    config = job.config.input
    return Reader(schema, dict(config.storage_options), config.paths[0], job.patience, job.format)


def read_of(job: JobPlan) -> Read:
    """Return what reads the rows that are answered."""
    wanted = job.task.input_columns()
    if not job.selection:
        return Read(reader_of(job, wanted))
    choose = Choose(reader_of(job, job.selection.columns), job.selection)
    return Read(reader_of(job, dict.fromkeys([*wanted, *job.selection.columns])), choose, job.unit_size)
