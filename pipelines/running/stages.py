"""The stages of a job, as its plan wants them: what reads, what tokenizes, what a replica is started with."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.stages.choose import Choose
from batchloom.pipelines.stages.read import Read
from batchloom.pipelines.stages.reader import Reader
from batchloom.pipelines.stages.tokenize import Tokenize, bucket_tokens


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


def tokenize_of(job: JobPlan, device: str) -> Tokenize:
    """Return what makes requests of the rows, in buckets for the `device` of the replicas."""
    engine = job.config.engine
    compute_once = engine.compute_once and not job.generation.get("do_sample")  # samples are drawn with the row's seed
    num_tokens = bucket_tokens(job.task, engine.max_batch_tokens, device)
    return Tokenize(job.task, job.checkpoint.pinned, num_tokens, compute_once)


def settings_of(job: JobPlan, device: str, probe_answers: Any = None) -> dict[str, Any]:
    """Return the arguments of `start_replica` that do not depend on its place."""
    engine = job.config.engine
    return {
        "task": job.task,
        "model": job.checkpoint.pinned,
        "dtype": engine.dtype,
        "device": device,
        "tensor_parallel": engine.tensor_parallel,
        "max_batch_tokens": engine.max_batch_tokens,
        "seed": job.config.seed,
        "probe_answers": probe_answers,
    }
