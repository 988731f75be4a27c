"""Starts are counted, because Ray restarts for ever an actor whose process dies while it loads. It knows no model.

(With Ray 2.60 an actor that is killed in its constructor was started 67 times a minute, and
`max_consecutive_actor_init_deaths` did not see it.)
"""

from collections import Counter

MAX_STARTS = 4
KILLED = "Its process was killed: look for an out-of-memory kill on its node."


class Starts:
    """How often each replica began to load since it last was ready, and how it ended."""

    def __init__(self) -> None:
        self._num_begun: Counter[str] = Counter()
        self._last_words: dict[str, str] = {}

    def begin(self, replica: str) -> str | None:
        """Return the reason not to try once more, where there is one."""
        if self._num_begun[replica] == MAX_STARTS:
            words = self._last_words.get(replica, KILLED)
            return f"A replica was lost {MAX_STARTS} times while it loaded the model. {words}"
        self._num_begun[replica] += 1
        return None

    def lost(self, replica: str, words: str) -> None:
        """Keep what a replica knows of its end."""
        self._last_words[replica] = words

    def ready(self, replica: str) -> None:
        del self._num_begun[replica]
