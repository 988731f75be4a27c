"""How long a task's inputs may be, and what happens to longer ones. It knows no task."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from batchloom import models
from batchloom.pipelines.errors import ConfigError, RowError
from batchloom.pipelines.tasks.base import TaskSpec
from batchloom.pipelines.tasks.windows import window_size

Truncation = Literal["error", "right", "left"]
CUTS = ("right", "left")


@dataclass(frozen=True, kw_only=True)
class LengthOptions:
    """`task_options` of every task."""

    max_length: int | None = None
    """Tokens of an input at most, special tokens included. None: the model's positions, and where inputs are truncated
    or read in windows no more than the tokenizer's model_max_length."""
    truncation: Truncation | None = None
    """What happens to a longer input: an error row; its end or its start is left out, and the cut counted. None: as the
    task does it."""


@dataclass(frozen=True)
class InputLength:
    """The limit of a job's inputs."""

    most: int | None
    """Tokens, special tokens included; None: any number."""
    truncation: Truncation | None
    """What happens to longer inputs; None: they are read in pieces."""

    @staticmethod
    def of(
        spec: TaskSpec, options: LengthOptions, default: Truncation | None, habit: int | None = None
    ) -> "InputLength":
        """Return what a job's options ask for. `default`: the task's truncation; `habit`: its length where none is set.

        As in the reference, a tokenizer's model_max_length counts where texts are truncated, and not where a longer one
        is an error. Raises: ConfigError where no text could be of the length that is asked for.
        """
        truncation = options.truncation or default
        found = spec.checkpoint
        if options.max_length is not None:
            _check(spec, options.max_length)
            return InputLength(options.max_length, truncation)
        limits = [found.max_positions, habit, found.model_max_length if truncation in CUTS else None]
        return InputLength(min((limit for limit in limits if limit is not None), default=None), truncation)

    @property
    def window(self) -> int:
        """Tokens that are read at once, where inputs are read in windows."""
        return window_size(self.most)

    @property
    def settings(self) -> dict[str, Any]:
        """What stands for it in a task's settings."""
        return {"max_length": self.most, "truncation": self.truncation}

    def kept(self, num_tokens: int, room: int) -> slice:
        """Return which tokens stay of more than `room`; nothing is left out where it is not asked for."""
        if num_tokens <= room or self.truncation not in CUTS:
            return slice(None)
        return slice(0, room) if self.truncation == "right" else slice(num_tokens - room, num_tokens)

    def error(self, num_tokens: int) -> RowError | None:
        """Return the error of an input with too many tokens, None where it has an answer."""
        if self.truncation != "error" or self.most is None or num_tokens <= self.most:
            return None
        return too_long(num_tokens, self.most, "Shorten it, or set task_options.truncation to right or left.")

    def places(self, num_tokens: int, around: tuple[int, int]) -> npt.NDArray[np.intp]:
        """Return which tokens of an input are read; `around`: its special tokens before and after, which stay."""
        every = np.arange(num_tokens)
        if self.most is None or num_tokens <= self.most or self.truncation not in CUTS:
            return every
        before, after = around
        head = before if self.truncation == "left" else self.most - after
        return np.delete(every, slice(head, num_tokens - self.most + head))


def too_long(num_tokens: int, limit: int, advice: str) -> RowError:
    """Return the error of an input with more tokens than are taken."""
    return RowError("prepare", "too_long", f"{num_tokens} tokens, and {limit} are taken at most. {advice}")


def _check(spec: TaskSpec, max_length: int) -> None:
    positions = spec.checkpoint.max_positions
    if positions is not None and max_length > positions:
        raise ConfigError(
            f"task_options.max_length: is {max_length}, and the model has {positions} positions. Lower it, or leave it "
            "out."
        )
    around = models.load_tokenizer(spec.checkpoint.pinned).num_special_tokens()
    if max_length <= around:
        raise ConfigError(
            f"task_options.max_length: is {max_length}, and the tokenizer puts {around} special tokens around a text: "
            f"must be at least {around + 1}."
        )
