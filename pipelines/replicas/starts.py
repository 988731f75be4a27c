"""Starts are counted, because Ray restarts for ever an actor whose process dies while it loads. It knows no model.

The count lives in an actor of its own: whoever dies of a start cannot count it. (With Ray 2.60 an actor that is killed
in its constructor was started 67 times a minute, and `max_consecutive_actor_init_deaths` did not see it.)
"""

from collections import Counter
from typing import Any

import ray

MAX_STARTS = 4
KILLED = "Its process was killed: look for an out-of-memory kill on its node."


class Starts:
    """What the replicas of a job share; each calls it from its own actor."""

    def __init__(self) -> None:
        self._count: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Count).remote()

    def begin(self) -> str | None:
        """Called before loading; the reason not to try once more, where there is one."""
        refusal: str | None = ray.get(self._count.begin.remote(_this_replica()))
        return refusal

    def lost(self, words: str) -> None:
        """What a replica knows of its end."""
        ray.get(self._count.lost.remote(_this_replica(), words))

    def ready(self) -> None:
        ray.get(self._count.ready.remote(_this_replica()))


class Count:
    """How often each replica began to load since it last was ready, and how it ended."""

    def __init__(self) -> None:
        self._num_begun: Counter[str] = Counter()
        self._last_words: dict[str, str] = {}

    def begin(self, replica: str) -> str | None:
        if self._num_begun[replica] == MAX_STARTS:
            words = self._last_words.get(replica, KILLED)
            return f"A replica was lost {MAX_STARTS} times while it loaded the model. {words}"
        self._num_begun[replica] += 1
        return None

    def lost(self, replica: str, words: str) -> None:
        self._last_words[replica] = words

    def ready(self, replica: str) -> None:
        del self._num_begun[replica]


def _this_replica() -> str:
    """The actor's id, which stays when Ray restarts it."""
    name = ray.get_runtime_context().get_actor_id()
    assert name is not None, "called by a replica, which is an actor"
    return name
