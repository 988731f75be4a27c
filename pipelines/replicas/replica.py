"""A replica is one model that answers units: behind an engine where text is generated, by single passes elsewhere."""

from typing import Any, Protocol

import pyarrow as pa

from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.replicas import probe
from batchloom.pipelines.replicas.engine import EngineReplica
from batchloom.pipelines.replicas.single_pass import SinglePassReplica
from batchloom.pipelines.stages.tokenize import tokenizer_of
from batchloom.pipelines.tasks.base import Task


class Replica(Protocol):
    """One model."""

    def answer(self, unit: Unit, requests: pa.Table) -> pa.Table:
        """The answers to a unit's requests in RESULT_SCHEMA, sorted by row, piece and sample; from any thread."""

    def measures(self) -> dict[str, float]:
        """What the model did since this was last asked: seconds busy, tokens. Each second is told once."""


def start_replica(
    *,
    task: Task,
    model: str,
    dtype: str,
    device: str,
    num_threads: int,
    max_batch_tokens: int,
    seed: int,
    tensor_parallel: int = 1,
    probe_answers: probe.Answers | None = None,
    follower_starter: Any = None,
) -> Replica:
    """Load the model as the task needs it; raises ModelError where that is not possible.

    `num_threads` are those of one rank. `probe_answers` are one rank's; raises JobError where several differ from them.
    `follower_starter` starts ranks on other nodes (models/ranks/connection.py).
    """
    import torch

    from batchloom import models

    if num_threads:
        torch.set_num_threads(num_threads)
    loaded = models.load_model(model, task.architecture, dtype, device, tensor_parallel, follower_starter)
    if probe_answers is not None:
        probe.check(probe.ask(loaded), probe_answers, tensor_parallel, str(loaded.dtype).removeprefix("torch."))
    limit = max_batch_tokens if loaded.max_positions is None else None
    if not task.generation:
        best = models.SinglePass(loaded).max_batch_tokens  # by device; the job may ask for less
        return SinglePassReplica(models.SinglePass(loaded, min(best, max_batch_tokens)), task, limit)
    tokenizer = tokenizer_of(model)
    engine = models.Engine(
        loaded,
        max_batch_tokens=max_batch_tokens,
        stop_text=lambda ids: tokenizer.decode_batch([ids])[0],
    )
    return EngineReplica(engine, models.GenerationParams.from_dict(dict(task.generation)), seed, limit)
