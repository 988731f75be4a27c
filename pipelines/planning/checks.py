"""What is wrong with a job's settings before anything is read: every problem in one error. It knows no store."""

import math
import os
import re

from batchloom.pipelines.config import JSON_ENDINGS, EngineConfig, JobConfig, ModelOptions
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.stores.storage import absolute

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def check_named(config: JobConfig) -> None:
    """Raise ConfigError for paths that cannot be: empty ones, made absolute, would be the working directory."""
    problems = []
    if not all(config.input.paths or [""]):
        problems.append("input.paths: is empty or holds an empty text; name files, folders or globs.")
    if not config.output.path:
        problems.append("output.path: is empty; name a folder.")
    elif (file := _file_on(config.output.path)) is not None:
        problems.append(f"output.path: {file} is there and no folder. Name another folder, or remove it.")
    if not config.model:
        problems.append("model: is empty; name a folder, a URL or hf://org/name.")
    if HUB_NAME.fullmatch(config.model) and not os.path.exists(config.model):
        problems.append(f"model: there is no folder {config.model} here. Did you mean hf://{config.model}?")
    named = {"model": [config.model], "input.paths": config.input.paths, "output.path": [config.output.path]}
    problems += [f"{key}: holds a NUL byte." for key, paths in named.items() if any("\0" in path for path in paths)]
    if problems:
        raise ConfigError("\n".join(problems))


def _file_on(folder: str) -> str | None:
    """Return what lies on a local path and is no folder. None for URLs, and where nothing does."""
    there = absolute(folder)
    if "://" in there or "\0" in there:
        return None
    while not os.path.lexists(there) and os.path.dirname(there) != there:
        there = os.path.dirname(there)
    return None if os.path.isdir(there) else there


def check_numbers(config: JobConfig) -> None:
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


def check_model_options(options: ModelOptions) -> None:
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
