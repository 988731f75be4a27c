"""A resolved job: frozen and complete. planning/checks.py checks its values. It knows no YAML and no command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class CsvConfig:
    """How files of delimited values are written."""

    header: bool = True
    """Whether the first record of each file has the names of its columns; false: they are called f0, f1, ..."""
    delimiter: str | None = None
    """One character. None: a comma in csv, a tab in tsv."""
    quote: str | None = '"'
    """One character around fields that hold delimiters or ends of lines; doubled, it is meant. None: there is none."""
    escape: str | None = None
    """One character that takes the meaning of the one behind it. None: there is none."""


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """The input: which rows are read, and which of their columns."""

    paths: tuple[str, ...]
    """Files, folders or globs of one store: local paths or fsspec URLs. Links to files are followed, to folders only
    where they are named here."""
    format: Literal["parquet", "jsonl", "csv", "tsv", "text", "documents"] | None = None
    """What the files are: text has a row for each line, documents for each file. None: by their endings."""
    csv: CsvConfig = field(default_factory=CsvConfig)
    """How files of csv and tsv are written."""
    version: int | None = None
    """Of a table: the version (Delta) or the number of the snapshot (Iceberg) that is read. None: the one that a job in
    output.path began with, or the newest."""
    text_column: str = "text"
    """The column that a task reads: strings, for conversations also lists of strings."""
    text_pair_column: str | None = None
    """text-classification: the column with each text's partner, such as a hypothesis or an answer. None: texts stand
    alone."""
    question_column: str = "question"
    """question-answering: the column with the questions."""
    context_column: str = "context"
    """question-answering: the column with the texts that hold the answers."""
    keep_columns: tuple[str, ...] | None = None
    """Columns copied to the output. None copies all but those that the task reads."""
    rows_per_unit: int = 1024
    """The largest number of rows in a unit: what is computed together. Larger row groups are sliced, smaller ones and
    small shards are joined. It may be changed between two runs of a job."""
    max_unit_bytes: int = 1 << 25
    """The largest number of bytes in a unit, by the footers, not compressed. It bounds the memory of workers, and may
    be changed between two runs of a job."""
    limit: int | None = None
    """The largest number of rows, the first ones of each file: a trial of the job, with an output of its own, as
    a limit is another configuration. None: all."""
    where: str | None = None
    """Which rows are answered: a condition on the columns of the input, as in SQL: lang = 'en' and length(text) > 200.
    None: all. Of a limit's rows, those for which it is true."""
    sample: float | None = None
    """The share of rows that are answered, above 0: which ones is told by their files' paths and their numbers. Of a
    limit's rows, that share. None: all."""
    missing: Literal["error", "keep"] = "error"
    """Input files that were deleted after they were answered. error: the job is refused. keep: their parts stay. A file
    that was renamed is a deleted and a new one: under keep its rows are there twice."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Arguments for the fsspec filesystem, such as an endpoint. Secrets belong in the environment."""


JSON_ENDINGS = {"none": "", "gzip": ".gz", "zstd": ".zst"}
"""Of compressed files of JSON Lines."""


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """The output: where parts are written."""

    path: str
    """A folder: a local path or an fsspec URL."""
    mode: Literal["resume", "overwrite", "error"] = "resume"
    """resume: keep finished parts of the same job. overwrite: remove Batchloom's files first. error: refuse a folder
    that is not empty."""
    rows_per_part: int | None = None
    """The largest number of rows in an output file. None: 16,384 where text is generated, 131,072 elsewhere, and in any
    case no more than 256 MiB of the input. What is finished of a part survives a kill whatever its size."""
    format: Literal["parquet", "jsonl"] = "parquet"
    """Of output files. jsonl is JSON Lines: an object a line. As what follows it may be changed between two runs of a
    job: parts are then written again, and nothing is computed."""
    partition_by: tuple[str, ...] = ()
    """Hive partitions of the input by which files lie in folders, `lang=en/`; these columns are not in the files. It
    may be changed where no file that is there has rows of several folders."""
    compression: Literal["zstd", "snappy", "gzip", "lz4", "none"] | None = None
    """Of output files. None: zstd for parquet, gzip for jsonl, which has no snappy and lz4. snappy is for old readers,
    none for columns that hardly shrink, such as embeddings."""
    row_group_rows: int = 16384
    """The largest number of rows in a row group of a Parquet file: what readers fetch and skip as a whole. A group also
    ends at 32 MiB."""
    statistics: bool = True
    """Whether Parquet files hold the smallest and largest value of each column and row group, by which readers skip
    groups."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Arguments for the fsspec filesystem."""

    @property
    def codec(self) -> str:
        """The compression of files."""
        return self.compression or ("zstd" if self.format == "parquet" else "gzip")

    @property
    def ending(self) -> str:
        """Of the names of files."""
        return ".parquet" if self.format == "parquet" else f".jsonl{JSON_ENDINGS[self.codec]}"


@dataclass(frozen=True, kw_only=True)
class ReplicasConfig:
    """How many copies of the model work in parallel."""

    min: int = 1
    """Replicas at the start, and as long as there is work. The job begins with those that find room."""
    max: int = 1
    """Replicas that the pool may grow to while units wait and the cluster has room. Nodes may come later."""
    wait_minutes: float = 30.0
    """Minutes for which a job waits, at its start or later, while no node can hold a replica; then it fails, and the
    same command resumes it. A cluster that can never have such a node is refused at once."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How replicas compute."""

    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """auto: the checkpoint's on an accelerator, float32 on a CPU. int8, on CPUs alone: linear layers in integers, all
    else in bfloat16; answers differ from the model's, and the manifest says how much."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: an accelerator where a node has one, or one that may come, and CPUs for int8; cpu; cuda."""
    tensor_parallel: int = 1
    """Ranks of a replica: devices that hold one model together, on one node where a node has as many GPUs."""
    gpus_per_replica: float = 1.0
    """The share of a GPU that a replica of one rank holds, and of its memory: 0.5 puts two replicas on each GPU."""
    reserve_gpus: bool = False
    """With device cpu: each replica still reserves as many GPUs of the cluster as it has ranks. For a rehearsal."""
    probe: bool = True
    """With several ranks, and in int8: before its first unit a replica answers fixed requests, and the job fails if its
    answers differ from those of a single rank, in int8 too much from those in float32."""
    replicas: ReplicasConfig = field(default_factory=ReplicasConfig)
    max_batch_tokens: int = 16384
    """Prompt tokens that one bucket may hold: an engine's prefill, or a single pass (2,048 at most on a CPU)."""
    units_in_flight: int = 2
    """Units whose requests one replica computes together."""
    compute_once: bool = True
    """Compute rows of a unit with equal input columns once. Does not apply to sampling, where rows have own seeds."""

    @property
    def wanted_device(self) -> Literal["auto", "cpu", "cuda"]:
        """What `device` means for the dtype: int8 is for CPUs, whatever else nodes have."""
        return "cpu" if self.device == "auto" and self.dtype == "int8" else self.device


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What stands over the checkpoint's config.json, and how its weights are taken."""

    architecture: str | None = None
    """The class to load it as, one of its family: BartForCausalLM for the decoder of bart-base. None: config.json's."""
    num_labels: int | None = None
    """Labels of a classifier. None: config.json's, or where that names none as many as the weights have."""
    id2label: Mapping[str, str] | None = None
    """Names of the labels by their numbers, from 0: {0: negative, 1: positive}. None: config.json's."""
    strict: bool = False
    """Refuse weights with tensors that no class of the family reads, such as adapters and further layers. False: `plan`
    and the log name them."""

    @property
    def changes(self) -> dict[str, Any]:
        """What stands over config.json."""
        changes: dict[str, Any] = {}
        if self.architecture is not None:
            changes["architectures"] = [self.architecture]
        if self.id2label is not None:
            changes |= {"id2label": dict(self.id2label), "label2id": None, "num_labels": len(self.id2label)}
        elif self.num_labels is not None:
            changes["num_labels"] = self.num_labels
        return changes


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """When a job with too many errors or useless answers is stopped, and how long is waited for what does not come."""

    max_error_rate: float = 0.5
    """Share of the job's rows that may become error rows: where most fail, something is wrong with the job as a whole.
    1.0 never stops it."""
    max_degenerate_rate: float = 1.0
    """Share of the job's rows whose generated answers may be empty, copies of their input, or repeat themselves
    endlessly. 1.0 never stops the job. Truncated answers are counted in the manifest, and do not count here."""
    max_unit_attempts: int = 5
    """Replicas that may be lost one after the other while they compute a unit, before the unit fails. Deaths that
    narrow down which of its rows ends the process are not counted. A part has as many attempts to be written."""
    quiet_seconds: float = 15.0
    """Seconds without a finished part after which progress says what is waited for. More where units take longer, and
    twice as many before the first."""
    stall_minutes: float | None = None
    """Minutes without a step or a batch after which a replica that has work is ended and started again. None: 20 times
    the longest pause that it made so far, and at least 15 minutes."""
    storage_patience: float = 300.0
    """Seconds for which a call to a store is tried again before its unit fails: an outage that short is survived."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """A resolved job file. Fields that decide answers enter the fingerprint: pipelines/planning/planner.py."""

    task: str
    """What is done to the rows: summarization, text-generation, zero-shot-classification, ... (docs/tasks.md)."""
    model: str
    """A checkpoint in hub format: path, fsspec URL or hf://org/name@revision."""
    input: InputConfig
    output: OutputConfig
    model_options: ModelOptions = field(default_factory=ModelOptions)
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Options under the names of transformers' GenerationConfig; unset ones come from the checkpoint. Null: without the
    checkpoint's."""
    task_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the task."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    seed: int = 0
    """Seeds sampling, together with the row's identity."""
