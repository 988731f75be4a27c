"""Starts are counted, because Ray restarts for ever an actor whose process dies while it loads. It knows no model.

The count lives in an actor of its own: whoever dies of a start cannot count it. (With Ray 2.60 an actor that is killed
in its constructor was started 67 times a minute, and `max_consecutive_actor_init_deaths` did not see it.)
"""

from collections import Counter
from typing import Any

import ray

MAX_STARTS = 4


class Starts:
    """How often each replica began to load since it last was ready."""

    def __init__(self) -> None:
        self._num_begun: Counter[str] = Counter()
        self._last_words: dict[str, str] = {}

    def begin(self, replica: str) -> str | None:
        """Called before loading; the reason not to try once more, where there is one."""
        if self._num_begun[replica] == MAX_STARTS:
            words = self._last_words.get(replica, "Its process was killed: look for an out-of-memory kill on its node.")
            return f"A replica was lost {MAX_STARTS} times while it loaded the model. {words}"
        self._num_begun[replica] += 1
        return None

    def lost(self, replica: str, words: str) -> None:
        """What a replica knows of its end."""
        self._last_words[replica] = words

    def ready(self, replica: str) -> None:
        del self._num_begun[replica]


def count_starts() -> Any:
    """The handle of a new count; it ends with its last handle."""
    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Starts).remote()
