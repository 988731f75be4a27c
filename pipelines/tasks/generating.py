"""Resolve the generation parameters of tasks that generate. It knows no task."""

from collections.abc import Iterator, Mapping
from typing import Any

from batchloom import models
from batchloom.models.errors import ParamsError
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks.base import TaskSpec

# Sequences of one request run together, so memory for all of them is needed at a time.
MAX_SEQUENCES = 1024


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
    except ParamsError as error:
        raise ConfigError(f"generation: {error}") from error
    if problems := [*_of_every_row(params, spec.checkpoint), *_too_many_sequences(params, spec.checkpoint)]:
        raise ConfigError("\n".join(f"generation: {problem}" for problem in problems))
    return params.to_dict()


def cut_by_positions(
    generation: Mapping[str, Any], checkpoint: models.CheckpointInfo, num_prefix_tokens: int
) -> str | None:
    """Return what to tell a user whose answers may be cut by the decoder's positions, before the length asked for.

    `num_prefix_tokens`: those that every answer begins with.
    """
    name = "max_length" if generation.get("max_length") is not None else "max_new_tokens"
    num_before = 0 if name == "max_length" else num_prefix_tokens  # max_length counts them
    positions = checkpoint.max_positions
    if positions is None or not generation or _most(generation) + num_before <= positions + 1:
        return None
    behind = f" behind an answer_prefix of {num_before} tokens" if num_before else ""
    return (
        f"generation.{name} = {generation[name]}{behind} is more than the decoder's {positions} positions: an answer "
        "that has not ended is cut there, with finish_reason length, where transformers fails. Shorter ones are as "
        "they are."
    )


def _of_every_row(params: "models.GenerationParams", checkpoint: models.CheckpointInfo) -> Iterator[str]:
    """Yield a line for each reason why every row would be refused; a decoder alone starts from the row's own prompt, of
    one token at least."""
    if checkpoint.has_encoder and params.decoder_start_token_id is None and params.bos_token_id is None:
        yield "the decoder has no token to start from: set decoder_start_token_id, in the job file or in config.json."
    if params.max_length is not None and params.max_length < 2:
        yield (
            f"max_length = {params.max_length} leaves no room after the token that the decoder starts from. Raise it, "
            "or set max_new_tokens."
        )
    positions = checkpoint.max_positions
    least = params.min_new_tokens + 1 if params.min_new_tokens is not None else params.min_length or 0
    if positions is not None and min(least, _most(params.to_dict())) > positions + 1:
        name = "min_length" if params.min_new_tokens is None else "min_new_tokens"
        yield (
            f"{name} = {getattr(params, name)} is more than the decoder's {positions} positions, so no row could be "
            f"answered. Set it to {positions + (params.min_new_tokens is None)} at most."
        )


def _most(generation: Mapping[str, Any]) -> int:
    """Return the length asked for at most, with the token that the decoder starts from."""
    most: int = generation.get("max_length") or generation["max_new_tokens"] + 1
    return most


def _too_many_sequences(params: "models.GenerationParams", checkpoint: models.CheckpointInfo) -> Iterator[str]:
    """Yield a line where a row would grow so many sequences that no machine could hold them."""
    if params.num_sequences <= MAX_SEQUENCES:
        return
    name = "num_beams" if (params.num_beams or 1) > MAX_SEQUENCES else "num_return_sequences"
    logits = params.num_sequences * checkpoint.config.vocab_size * 4
    token = models.Footprint(config=checkpoint.config, architecture=checkpoint.architecture).cached_token_bytes
    yield (
        f"{name} = {params.num_sequences} asks for more sequences than the {MAX_SEQUENCES} that one row may grow at a "
        f"time: a step's logits would take {logits / 1e9:,.1f} GB, and the keys and values of each new token "
        f"{params.num_sequences * token / 1e9:,.1f} GB. Lower it; searches gain nothing above some tens."
    )
