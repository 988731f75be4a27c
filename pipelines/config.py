"""A job as resolved: frozen, complete, checked for sense. It does not know YAML, the command line or Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Where the rows come from."""

    paths: tuple[str, ...]
    """Files, folders or globs of one store: local paths or fsspec URLs. Links to files are followed, to folders only
    where they are named here."""
    text_column: str = "text"
    """The column a task reads; strings. Conversations may be lists of strings."""
    question_column: str = "question"
    """question-answering: the column with the questions."""
    context_column: str = "context"
    """question-answering: the column with the texts that hold the answers."""
    keep_columns: tuple[str, ...] | None = None
    """Columns copied to the output. None keeps all but the ones the task reads."""
    rows_per_unit: int = 1024
    """The largest number of rows in a unit. Larger row groups are sliced, smaller neighbours of a shard are joined."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for the fsspec filesystem, such as an endpoint. Secrets belong into the environment."""


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where the parts go."""

    path: str
    """A folder: a local path or an fsspec URL."""
    mode: Literal["resume", "overwrite", "error"] = "resume"
    """resume: keep finished parts of the same job. overwrite: remove its parts first. error: refuse if not empty."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for the fsspec filesystem."""


@dataclass(frozen=True, kw_only=True)
class ReplicasConfig:
    """How many copies of the model work side by side."""

    min: int = 1
    """Replicas that are started at once."""
    max: int = 1
    """Replicas that the pool may grow to."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a replica computes."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: the checkpoint's on an accelerator, float32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: an accelerator where there is one; cpu; cuda."""
    tensor_parallel: int = 1
    """Ranks of a replica: devices that hold one model together, on one node where a node has as many GPUs."""
    reserve_gpus: bool = False
    """With device cpu: replicas hold as many of the cluster's GPUs as they have ranks all the same. For a rehearsal."""
    probe: bool = True
    """With several ranks: before its first unit a replica answers a fixed probe, and refuses to work where its answers
    are not those of one rank."""
    replicas: ReplicasConfig = field(default_factory=ReplicasConfig)
    max_batch_tokens: int = 16384
    """Prompt tokens that one bucket may hold: an engine's prefill, or a single pass (2,048 at most on a CPU)."""
    units_in_flight: int = 2
    """Units that feed one replica at the same time."""
    compute_once: bool = True
    """Rows of a unit that say the same are computed once. Sampled answers are drawn for each row all the same."""


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """When a job that goes wrong as a whole is stopped."""

    max_error_rate: float = 1.0
    """Share of rows, of all rows of the job, that may end as error rows. 1.0 never stops."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """One job file, resolved. Fields that decide an answer enter the fingerprint: pipelines/planning/job_plan.py."""

    task: str
    """One of pipelines.tasks.TASKS."""
    model: str
    """A checkpoint in hub format: path, fsspec URL or hf://org/name@revision."""
    input: InputConfig
    output: OutputConfig
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Options under the names of transformers' GenerationConfig; unset ones come from the checkpoint."""
    task_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the task."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    seed: int = 0
    """Seeds sampling, together with the row's identity."""
