"""Finishes a job without Ray and without its model: real parts and a real manifest, with answers that are made up."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchloom import pipelines
from batchloom.pipelines.config import EngineConfig, InputConfig, JobConfig, OutputConfig
from batchloom.pipelines.ledger import ledger
from batchloom.pipelines.ledger.manifest import Manifest
from batchloom.pipelines.ledger.register import Register
from batchloom.pipelines.ledger.resume import Done
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.planning.shards import sources_of
from batchloom.pipelines.planning.units import Part
from batchloom.pipelines.running.driver import Todo
from batchloom.pipelines.running.retry import Retry
from batchloom.pipelines.running.stream import assembler

MODEL = str(Path(__file__).resolve().parents[2] / "examples/demo_models/docs-bart-mini")
ERROR = {"stage": "prepare", "kind": "too_long", "message": "The text has 2,000 tokens.\nThe model takes 1,024."}


def summaries(paths: list[str], output: Path, keep: tuple[str, ...] | None = None, **how: Any) -> JobConfig:
    """A job over some files. `how`: keys of OutputConfig."""
    return JobConfig(
        task="summarization",
        model=MODEL,
        input=InputConfig(paths=tuple(paths), keep_columns=keep),
        output=OutputConfig(path=str(output), **({"rows_per_part": 10} | how)),
        engine=EngineConfig(dtype="float32"),
    )


def finish(config: JobConfig) -> Manifest:
    """Write all parts of a job and close it."""
    job = pipelines.plan(config)
    done, retry = Done(Register.of([])), Retry.none()
    account = Todo.of(job, done, retry).account(job, done, retry)
    ledger.open_job(job.output, job.job_record(), overwritten=None)
    job.keep_footers()
    for record in put_parts(job):
        account.wrote(record, {})
    manifest = account.manifest()
    ledger.close_job(job.output, manifest, job.columns if config.output.format == "jsonl" else None)
    return manifest


def put_parts(job: JobPlan) -> Iterator[Any]:
    """Write the parts of a job, and yield their records."""
    assemble = assembler(job)
    for part in job.parts:
        yield assemble.put(part, sources_of(part.spans, job.shards_by_name), [answers(assemble.answers, part)], {})


def answer(shard: str, row: int) -> str | None:
    """The answer to a row, which tells it; None where it is an error. The first rows of a file have no errors."""
    return None if row >= 10 and row % 7 == 0 else f"{shard} {row}: “é”\n\u2028"


def answers(schema: pa.Schema, part: Part) -> pa.Table:
    """Answers to the rows of a part."""
    texts = [answer(span.shard, row) for span in part.spans for row in range(span.start, span.stop)]
    made: dict[str, list[Any]] = {
        "summary_text": texts,
        "finish_reason": [text and "eos" for text in texts],
        "error": [ERROR if text is None else None for text in texts],
    }
    columns = [pa.array(made.get(field.name, [1] * len(texts)), field.type) for field in schema]
    return pa.table(columns, schema=schema)
