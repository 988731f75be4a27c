"""The tasks by name. Each lives in a file of its own; neither ray nor torch is imported here."""

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.config import InputConfig
from pipelines.errors import ConfigError
from pipelines.tasks.base import Checkpoint, Task
from pipelines.tasks.summarization import Summarization

TASKS: Mapping[str, Callable[[InputConfig, Mapping[str, Any], Checkpoint], Task]] = {
    "summarization": Summarization.create,
}

__all__ = ["TASKS", "Checkpoint", "Task", "create_task"]


def create_task(name: str, columns: InputConfig, options: Mapping[str, Any], checkpoint: Checkpoint) -> Task:
    """The task of that name with its options checked; ConfigError names what is unknown and lists what exists."""
    if name not in TASKS:
        raise ConfigError(f"task: {name!r} is not a task. Use one of: {', '.join(TASKS)}.")
    return TASKS[name](columns, options, checkpoint)
