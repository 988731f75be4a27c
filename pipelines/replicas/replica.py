"""A replica is one model that answers units: behind an engine where text is generated, by single passes elsewhere."""

import sys
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.replicas import probe
from batchloom.pipelines.replicas.engine import EngineReplica
from batchloom.pipelines.replicas.single_pass import SinglePassReplica
from batchloom.pipelines.stages.tokenize import tokenizer_of
from batchloom.pipelines.tasks.base import Task
from batchloom.pipelines.telemetry.activity import Activity

if TYPE_CHECKING:
    from batchloom.models import PinnedModel
    from batchloom.models.ranks.connection import FollowerStarter


class Replica(Protocol):
    """One model."""

    agreement: probe.Agreement | None
    """Of int8 with float32; None in other dtypes, and where nobody asked."""

    def answer(self, unit: Unit, requests: pa.Table) -> pa.Table:
        """Return the answers to a unit's requests in RESULT_SCHEMA, sorted by row, piece and sample; on any thread.

        `requests` are those of Tokenize: REQUEST_SCHEMA and `bucket`, in the order of buckets.
        """

    def activity(self) -> Activity:
        """Return what the model did so far: while steps come, the replica is alive."""


def start_replica(
    *,
    task: Task,
    model: "PinnedModel",
    dtype: str,
    device: str,
    num_threads: int,
    max_batch_tokens: int,
    seed: int,
    tensor_parallel: int = 1,
    gpu_share: float = 1.0,
    probe_answers: probe.Answers | None = None,
    follower_starter: "FollowerStarter | None" = None,
) -> Replica:
    """Load the model as the task needs it, and start its replica.

    `num_threads` are those of one rank, `gpu_share` what it may take of its GPU's memory. `probe_answers` are those of
    a single rank in float32, which several ranks must reproduce, and int8 nearly. `follower_starter` starts ranks on
    other nodes.

    Raises: ModelError where the model cannot be loaded or is not the planned one; JobError where several ranks or int8
    do not reproduce the probe.
    """
    import torch

    from batchloom import models
    from batchloom.models.device import limit_to_share
    from batchloom.models.single_pass.single_pass import num_workers_of

    if num_threads:
        torch.set_num_threads(num_threads)
    if gpu_share < 1:
        limit_to_share(gpu_share)
    loaded = models.load_model(model, task.architecture, dtype, device, tensor_parallel, follower_starter)
    agreement = None
    if probe_answers is not None:
        found = probe.ask(loaded, probe.questions_for(dtype))
        if dtype == "int8":
            agreement = probe.check_int8(found, probe_answers)
        else:
            probe.check(found, probe_answers, tensor_parallel, str(loaded.dtype).removeprefix("torch."))
    limit = max_batch_tokens if loaded.max_positions is None else None
    if not task.generation:
        # Tokenize has cut the batches: the pass has no budget of its own until memory runs out.
        single_pass = models.SinglePass(loaded, max_batch_tokens=sys.maxsize, num_workers=1)
        return SinglePassReplica(single_pass, task, limit, num_workers_of(loaded), agreement)
    tokenizer = tokenizer_of(model)
    engine = models.Engine(
        loaded,
        max_batch_tokens=max_batch_tokens,
        stop_text=lambda ids: tokenizer.decode_batch([ids])[0],
    )
    params = models.GenerationParams.from_dict(dict(task.generation))
    return EngineReplica(engine, params, seed, limit, task.log_probs, agreement)
