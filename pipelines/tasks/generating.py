"""Shared by the tasks that generate: resolving parameters, and decoding answers. It knows no task."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchloom import models
from batchloom.models.errors import ParamsError
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks.base import TaskSpec

Row = int


def resolved_generation(spec: TaskSpec, **own: Any) -> Mapping[str, Any]:
    """Return the job's and the task's generation parameters, on top of the checkpoint's defaults.

    Raises: ConfigError where a parameter is set twice, unknown, invalid or contradicts another.
    """
    asked = dict(spec.generation)
    twice = [name for name in own if name in asked]
    if twice:
        raise ConfigError(f"{', '.join(twice)}: set in task_options and in generation. Keep one.")
    try:
        params = models.GenerationParams.from_dict({**asked, **own}).resolve(spec.checkpoint.generation_defaults)
        params.check_vocabulary(spec.checkpoint.config.vocab_size)
        return params.to_dict()
    except ParamsError as error:
        raise ConfigError(f"generation: {error}") from error


def one_answer(spec: TaskSpec, generation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `generation`. Raises: ConfigError where it asks for several answers and the task's column holds one."""
    if generation["num_return_sequences"] > 1:
        raise ConfigError(
            f"generation.num_return_sequences: is {generation['num_return_sequences']}, and {spec.task} gives one text "
            "a row. Leave it out, or use text2text-generation, whose column is a list then."
        )
    return generation


def first_answers(results: pa.Table) -> pa.Table:
    """Return the best answer of each request."""
    return results.filter(pc.equal(results["sample"], 0))


def texts_of(results: pa.Table, tokenizer: Any) -> list[tuple[Row, str]]:
    """Return each answer's row and text, in the order of `results`."""
    texts = tokenizer.decode_batch(results["token_ids"].to_pylist())
    return list(zip(results["row"].to_pylist(), texts, strict=True))
