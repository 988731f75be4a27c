"""Plan a job: read the checkpoint's description and every shard's footer. Planning starts nothing and imports neither
ray nor torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from textwrap import indent
from typing import Any

from batchloom import models
from batchloom.models.errors import ModelError
from batchloom.models.patience import Patience
from batchloom.pipelines.columns.choose import choose_columns
from batchloom.pipelines.columns.partition_by import check_partition_by
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.formats.base import Columns, Format
from batchloom.pipelines.formats.parquet import Parquet
from batchloom.pipelines.planning.apart import check_apart, check_in_no_table
from batchloom.pipelines.planning.checks import check_model_options, check_named, check_numbers
from batchloom.pipelines.planning.fingerprint import as_json
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.planning.kept_footers import KeptFooters
from batchloom.pipelines.planning.limit import limited, selected
from batchloom.pipelines.planning.pinned import pinned_version
from batchloom.pipelines.planning.shards import find_shards
from batchloom.pipelines.selection.selection import Selection
from batchloom.pipelines.stores.storage import Store, absolute
from batchloom.pipelines.tables.columns import TableParquet
from batchloom.pipelines.tasks import Task, TaskSpec, create_task


def plan(config: JobConfig) -> JobPlan:
    """Read the checkpoint's description and every shard's footer, and plan the job.

    Raises: ConfigError (several problems together), InputError or ModelError where the job cannot run.
    """
    check_named(config)
    config = _with_absolute_paths(config)
    problems: list[ConfigError | ModelError] = []
    with _gathering(problems):
        check_numbers(config)
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
    check_model_options(options)
    checkpoint = models.describe(config.model, task=config.task, changes=options.changes, strict=options.strict)
    spec = TaskSpec(
        task=config.task,
        input=config.input,
        options=config.task_options,
        generation=config.generation,
        checkpoint=checkpoint,
    )
    return checkpoint, create_task(spec)


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
