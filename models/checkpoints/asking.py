"""Calls to the store that a model is in, tried again after trouble that passes. What they ask is the callers'."""

from collections.abc import Callable
from typing import TypeVar

from fsspec import AbstractFileSystem

from batchloom.models.patience import Patience, is_local

Given = TypeVar("Given")

PLANNED = Patience()  # for a model that was found before: an outage is waited for
FIRST = Patience(seconds=10.0)  # for a first question: a wrong address or key is told within seconds
NONE = Patience(seconds=0.0)  # where there is another way, such as a copy in the cache


def ask(
    filesystem: AbstractFileSystem,
    attempt: Callable[[], Given],
    patience: Patience = PLANNED,
    num_bytes: int | None = None,
) -> Given:
    """Return what `attempt` returns. `num_bytes` that it transfers; None: it may take any time.

    Raises: GaveUpError with the last error.
    """
    return patience.call(attempt, is_known=patience is PLANNED, is_local=is_local(filesystem), num_bytes=num_bytes)
