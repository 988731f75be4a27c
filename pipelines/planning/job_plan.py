"""A job's plan: shards, units, columns, fingerprint. Planning starts nothing and imports neither ray nor torch."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from textwrap import indent
from typing import Any

import pyarrow as pa

from batchloom import models
from batchloom.models.errors import ModelError
from batchloom.models.patience import Patience
from batchloom.models.redaction import redacted_values, shareable
from batchloom.pipelines.columns.choose import choose_columns
from batchloom.pipelines.columns.partition_by import check_partition_by, partition_folder
from batchloom.pipelines.config import JSON_ENDINGS, EngineConfig, JobConfig, ModelOptions
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.formats.base import Columns, Format
from batchloom.pipelines.formats.parquet import Parquet
from batchloom.pipelines.planning.apart import check_apart, check_in_no_table
from batchloom.pipelines.planning.fingerprint import as_json, fingerprint
from batchloom.pipelines.planning.kept_footers import KeptFooters
from batchloom.pipelines.planning.limit import limited, selected, words_for_left_out
from batchloom.pipelines.planning.pinned import pinned_version
from batchloom.pipelines.planning.shards import Shard, find_shards, keep_footers
from batchloom.pipelines.planning.units import Part, Size, num_units, parts_of
from batchloom.pipelines.selection.selection import Selection
from batchloom.pipelines.stores.storage import Store, absolute
from batchloom.pipelines.tables.columns import TableParquet
from batchloom.pipelines.tasks import Task, TaskSpec, create_task
from batchloom.pipelines.tasks.generating import cut_by_positions

# Rows of a part at most, where output.rows_per_part says nothing: minutes of a GPU's work, megabytes of answers.
GENERATED_ROWS, CLASSIFIED_ROWS = 1 << 14, 1 << 17
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PART_BYTES = 1 << 28  # of the input's rows, not compressed: what is kept of them is in the part as well


@dataclass(frozen=True)
class JobPlan:
    """A validated job, and everything that it will write."""

    config: JobConfig
    checkpoint: models.CheckpointInfo
    task: Task
    shards: list[Shard]
    """With the rows that are looked at."""
    schema: pa.Schema
    """The columns of the input that are used, with types that all shards share."""
    keep_columns: tuple[str, ...]
    fingerprint_of: Mapping[str, Any]
    """The components of the fingerprint: what decides an answer."""
    schemas: Sequence[pa.Schema] = field(default=(), repr=False)
    """Of each shard."""
    found: Sequence[Shard] = field(default=(), repr=False)
    """The shards with all of their rows."""
    selection: Selection = Selection()  # noqa: RUF009
    """Which of these rows are computed."""
    num_rows_excluded: int = 0
    """Of files that the selection leaves out by their Hive partitions: nobody looks at them."""
    retries: Sequence[Mapping[str, Any]] = ()
    """Other options of the task with which rows with errors were computed again."""
    footers: KeptFooters | None = field(default=None, repr=False)
    """Those that are kept in the output folder."""

    @property
    def format(self) -> Format:
        """Of all shards."""
        return self.shards[0].format

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.fingerprint_of)

    @cached_property
    def layout_of(self) -> dict[str, Any]:
        """The components of the layout: what decides a part's columns and their bytes beside the answers."""
        kept = [[name, str(self.schema.field(name).type)] for name in self.keep_columns]
        output = self.config.output
        file: dict[str, Any] = {"format": output.format, "compression": output.codec}
        if output.format == "parquet":
            file |= {"row_group_rows": output.row_group_rows, "statistics": output.statistics}
        if output.partition_by:
            file["partition_by"] = list(output.partition_by)
        return {"keep_columns": kept, **file}

    @cached_property
    def layout(self) -> str:
        return fingerprint(self.layout_of)[:16]

    @cached_property
    def shards_by_name(self) -> dict[str, Shard]:
        return {shard.name: shard for shard in self.shards}

    @property
    def columns(self) -> pa.Schema:
        """Of the parts."""
        kept = [self.schema.field(name).remove_metadata() for name in self.keep_columns]
        return pa.schema([*kept, *self.task.output_fields(), *LEDGER_FIELDS])

    def name_of(self, part: Part) -> str:
        """Return the name of a part's file."""
        return part.name(self.fingerprint, self.config.output.ending, self.config.output.partition_by)

    @property
    def part_size(self) -> Size:
        """How much a part has at most."""
        by_task = GENERATED_ROWS if self.task.generation else CLASSIFIED_ROWS
        return Size(self.config.output.rows_per_part or by_task, PART_BYTES)

    @property
    def unit_size(self) -> Size:
        """How much a unit has at most."""
        return Size(self.config.input.rows_per_unit, self.config.input.max_unit_bytes)

    @cached_property
    def parts(self) -> list[Part]:
        """The parts of an output that begins empty, in the order of rows."""
        by_folder: dict[str, list[Shard]] = {}
        for shard in self.shards:
            folder = partition_folder(shard.name, self.config.output.partition_by)
            by_folder.setdefault(folder, []).append(shard)
        return [part for shards in by_folder.values() for part in parts_of(shards, self.part_size)]

    @cached_property
    def num_units(self) -> int:
        """Into how many units all of them are cut."""
        return sum(num_units(part, self.shards_by_name, self.unit_size) for part in self.parts)

    @property
    def generation(self) -> Mapping[str, Any]:
        """The resolved generation parameters; empty where the task generates nothing."""
        return self.task.generation

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of answers before they are computed."""
        limited_to = words_for_left_out(self.found, self.config.input.limit)
        selected = self.selection.words(self.num_rows, self.num_rows_excluded)
        cut = cut_by_positions(self.generation, self.checkpoint)
        notes = (*self.checkpoint.notes, cut, limited_to, selected, self.format.news)
        return tuple(note for note in notes if note)

    @property
    def footprint(self) -> models.Footprint:
        """The memory that one rank of a replica needs; for device "auto", that on a GPU."""
        engine = self.config.engine
        return models.Footprint(
            config=self.checkpoint.config,
            architecture=self.task.architecture,
            num_ranks=engine.tensor_parallel,
            dtype=self.dtype_on(engine.device),
        )

    def dtype_on(self, device: str) -> str:
        """Return the dtype that a replica computes in on "cpu" or another device."""
        if self.config.engine.dtype != "auto":
            return self.config.engine.dtype
        return "float32" if device == "cpu" else self.checkpoint.dtype

    @cached_property
    def output(self) -> Store:
        """One object, so that what the driver was permitted is known to the workers that it is sent to."""
        return Store(self.config.output.path, self.config.output.storage_options, self.patience)

    @property
    def patience(self) -> Patience:
        """How long stores are tried."""
        return Patience(self.config.limits.storage_patience)

    def keep_footers(self) -> None:
        """Write the footers of the shards to the output folder, so that the next plan need not read them."""
        if self.footers is not None:
            keep_footers(self.footers, self.config.input, self.patience, self.found, self.schemas)

    @property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.shards)

    def job_record(self) -> dict[str, Any]:
        """Return the contents of `_batchloom/job.json`, which the manifest repeats; without credentials."""
        job = as_json(asdict(self.config))
        for section in ("input", "output"):
            job[section]["storage_options"] = shareable(job[section]["storage_options"])
        job = redacted_values(job)
        return {
            "batchloom": version("batchloom"),
            "job": job,
            "fingerprint": self.fingerprint,
            "fingerprint_of": dict(self.fingerprint_of),
            "retries": tuple(self.retries),
            "layout": self.layout,
            "layout_of": self.layout_of,
        }


def plan(config: JobConfig) -> JobPlan:
    """Read the checkpoint's description and every shard's footer, and plan the job.

    Raises: ConfigError (several problems together), InputError or ModelError where the job cannot run.
    """
    _check_named(config)
    config = _with_absolute_paths(config)
    problems: list[ConfigError | ModelError] = []
    with _gathering(problems):
        _check_numbers(config)
    selection = Selection()
    with _gathering(problems):
        selection = Selection.of(config.input)
    columns = None
    with _gathering(problems):
        checkpoint, task = _task_of(config)
        read = tuple(dict.fromkeys([*task.input_columns(), *selection.columns]))
        columns = Columns(read, config.input.keep_columns)
        models.load_tokenizer(checkpoint.pinned)  # one that does not parse should fail here, not in the workers
    with _gathering(problems):
        patience = Patience(config.limits.storage_patience)
        footers = KeptFooters(Store(config.output.path, config.output.storage_options, patience), columns)
        found, schemas = find_shards(
            config.input, patience, columns, footers, partial(pinned_version, config, patience)
        )
        config = _of_version(config, found[0].format)
        looked_at = limited(found, config.input.limit)
        check_apart(config, looked_at)
    with _gathering(problems):
        check_in_no_table(config.output, Patience(config.limits.storage_patience))
    _raise_all(problems)
    models.check_ranks(checkpoint.config, config.engine.tensor_parallel)
    schema, keep_columns = choose_columns(config.input, task, looked_at, schemas, selection)
    shards = selected(looked_at, selection)
    read_as: dict[str, Any] = {} if isinstance(shards[0].format, Parquet) else shards[0].format.settings()
    if config.input.limit is not None:
        read_as["limit"] = config.input.limit
    read_as |= selection.settings
    task = task.beside({*keep_columns, *config.output.partition_by})
    own = {field.name for field in [*task.output_fields(), *LEDGER_FIELDS]}
    check_partition_by(config.output, [shard.source for shard in shards if shard.num_rows], own)
    keep_columns = tuple(name for name in keep_columns if name not in config.output.partition_by)
    return JobPlan(
        config=config,
        checkpoint=checkpoint,
        task=task,
        shards=shards,
        schema=schema,
        keep_columns=keep_columns,
        schemas=schemas,
        found=found,
        selection=selection,
        num_rows_excluded=sum(shard.num_rows for shard in looked_at) - sum(shard.num_rows for shard in shards),
        footers=footers,
        fingerprint_of=as_json(
            {
                "weights": checkpoint.weights_hash,
                "tokenizer": checkpoint.tokenizer_hash,
                "architecture": task.architecture,
                "task": config.task,
                "task_options": task.settings(),
                "columns": {field.name: str(field.type) for field in task.output_fields()},
                "generation": dict(task.generation),
                "engine": {
                    "dtype": config.engine.dtype,
                    # Without a limit on positions, this budget decides which requests are too long.
                    "max_batch_tokens": config.engine.max_batch_tokens if checkpoint.max_positions is None else None,
                },
                "input": {"columns": list(task.input_columns()), **read_as},
                "seed": config.seed,
                "config": asdict(checkpoint.config),
            }
        ),
    )


def _of_version(config: JobConfig, format: Format) -> JobConfig:
    """Return the job with the version of the table that it reads, which is so recorded."""
    if not isinstance(format, TableParquet):
        return config
    return replace(config, input=replace(config.input, version=format.version))


def _task_of(config: JobConfig) -> tuple[models.CheckpointInfo, Task]:
    options = config.model_options
    _check_model_options(options)
    checkpoint = models.describe(config.model, task=config.task, changes=options.changes, strict=options.strict)
    spec = TaskSpec(
        task=config.task,
        input=config.input,
        options=config.task_options,
        generation=config.generation,
        checkpoint=checkpoint,
    )
    return checkpoint, create_task(spec)


def _check_model_options(options: ModelOptions) -> None:
    problems = []
    names, number = options.id2label, options.num_labels
    if number is not None and number < 1:
        problems.append(f"model_options.num_labels: is {number}, must be at least 1.")
    if names is not None and set(names) != set(map(str, range(len(names)))):
        problems.append(
            f"model_options.id2label: numbers its labels {', '.join(names) or 'with nothing'}, must be 0 to their "
            "number less 1."
        )
    if names is not None and number not in (None, len(names)):
        problems.append(f"model_options: num_labels is {number}, and id2label has {len(names)}. Leave one of them out.")
    if problems:
        raise ConfigError("\n".join(problems))


@contextmanager
def _gathering(problems: list[ConfigError | ModelError]) -> Iterator[None]:
    """Collect an error of the `with` block instead of raising it, so that all problems are reported together."""
    try:
        yield
    except (ConfigError, ModelError) as problem:
        problems.append(problem)


def _raise_all(problems: Sequence[ConfigError | ModelError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigError("the job cannot run as it is:\n" + indent("\n".join(map(str, problems)), "  "))


def _with_absolute_paths(config: JobConfig) -> JobConfig:
    return replace(
        config,
        model=absolute(config.model),
        input=replace(config.input, paths=tuple(absolute(path) for path in config.input.paths)),
        output=replace(config.output, path=absolute(config.output.path)),
    )


def _check_named(config: JobConfig) -> None:
    """Raise ConfigError for paths that cannot be: empty ones, made absolute, would be the working directory."""
    problems = []
    if not all(config.input.paths or [""]):
        problems.append("input.paths: is empty or holds an empty text; name files, folders or globs.")
    if not config.output.path:
        problems.append("output.path: is empty; name a folder.")
    if not config.model:
        problems.append("model: is empty; name a folder, a URL or hf://org/name.")
    if HUB_NAME.fullmatch(config.model) and not os.path.exists(config.model):
        problems.append(f"model: there is no folder {config.model} here. Did you mean hf://{config.model}?")
    named = {"model": [config.model], "input.paths": config.input.paths, "output.path": [config.output.path]}
    problems += [f"{key}: holds a NUL byte." for key, paths in named.items() if any("\0" in path for path in paths)]
    if problems:
        raise ConfigError("\n".join(problems))


def _check_numbers(config: JobConfig) -> None:
    at_least_one = {
        "input.rows_per_unit": config.input.rows_per_unit,
        "input.max_unit_bytes": config.input.max_unit_bytes,
        "input.limit": 1 if config.input.limit is None else config.input.limit,
        "output.row_group_rows": config.output.row_group_rows,
        "output.rows_per_part": 1 if config.output.rows_per_part is None else config.output.rows_per_part,
        "engine.tensor_parallel": config.engine.tensor_parallel,
        "engine.replicas.min": config.engine.replicas.min,
        "engine.replicas.max": config.engine.replicas.max,
        "engine.max_batch_tokens": config.engine.max_batch_tokens,
        "engine.units_in_flight": config.engine.units_in_flight,
        "limits.max_unit_attempts": config.limits.max_unit_attempts,
    }
    problems = [f"{name}: is {value}, must be at least 1." for name, value in at_least_one.items() if value < 1]
    if config.engine.replicas.max < config.engine.replicas.min:
        problems.append(
            f"engine.replicas: max is {config.engine.replicas.max}, less than min, {config.engine.replicas.min}."
        )
    problems += _gpu_problems(config.engine)
    csv = config.input.csv
    for name in ("delimiter", "quote", "escape"):
        if len((text := getattr(csv, name) or " ").encode()) != 1 or text in "\r\n\0":
            problems.append(f"input.csv.{name}: is {text!r}, must be one ASCII character, or null.")
    if csv.delimiter and csv.delimiter in (csv.quote, csv.escape):
        problems.append(f"input.csv.delimiter: is {csv.delimiter!r}, and so is input.csv.quote or input.csv.escape.")
    if config.output.format == "jsonl" and config.output.codec not in JSON_ENDINGS:
        problems.append(
            f"output.compression: is {config.output.codec}, and JSON Lines (output.format: jsonl) is written with "
            f"{', '.join(JSON_ENDINGS)}."
        )
    for name in ("max_error_rate", "max_degenerate_rate"):
        if not 0 <= (rate := getattr(config.limits, name)) <= 1:
            problems.append(f"limits.{name}: is {rate}, must be between 0 and 1.")
    for name in ("quiet_seconds", "stall_minutes"):
        if (value := getattr(config.limits, name)) is not None and not value > 0:
            problems.append(f"limits.{name}: is {value}, must be above 0.")
    if (sample := config.input.sample) is not None and not 0 < sample <= 1:
        problems.append(f"input.sample: is {sample}, must be above 0 and at most 1: 0.01 is a row in a hundred.")
    if not 0 <= config.limits.storage_patience < math.inf:
        problems.append(f"limits.storage_patience: is {config.limits.storage_patience}, must be 0 seconds or more.")
    if problems:
        raise ConfigError("\n".join(problems))


def _gpu_problems(engine: EngineConfig) -> list[str]:
    share, problems = engine.gpus_per_replica, []
    if not 0 < share <= 1:
        more = " engine.tensor_parallel is for models that need more than one GPU." if share > 1 else ""
        problems.append(f"engine.gpus_per_replica: is {share:g}, must be above 0 and at most 1.{more}")
    elif share < 1 and engine.tensor_parallel > 1:
        problems.append(
            f"engine.gpus_per_replica: is {share:g}, and each of {engine.tensor_parallel} ranks "
            "(engine.tensor_parallel) has a GPU of its own. Leave one of the two out."
        )
    elif share < 1 and engine.device == "cpu" and not engine.reserve_gpus:
        problems.append(f"engine.gpus_per_replica: is {share:g}, and engine.device: cpu uses no GPU. Leave one out.")
    if engine.dtype == "int8" and engine.device == "cuda":
        problems.append(
            "engine.dtype: is int8, which is computed on CPUs alone, and engine.device is cuda. Use bfloat16 or auto "
            "there, or engine.device: cpu."
        )
    if not 0 <= (minutes := engine.replicas.wait_minutes) < math.inf:
        problems.append(f"engine.replicas.wait_minutes: is {minutes}, must be 0 or more.")
    return problems
