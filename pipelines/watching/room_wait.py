"""A wait for room: nodes that hold a replica, or assemble parts, have not come yet, or have left. It knows no Ray."""

import time
from collections.abc import Callable


class RoomWait:
    """Call `look` whenever the nodes were looked at; it tells when a wait begins, and when it has lasted too long."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`minutes`: how long a wait may last."""
        self._seconds, self._clock = 60 * minutes, clock
        self._since: float | None = None
        self._is_told = False

    def look(self, has_room: bool) -> None:
        if has_room:
            self._since, self._is_told = None, False
        elif self._since is None:
            self._since = self._clock()

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the wait is too long; None where there is none."""
        return None if self._since is None else max(0.0, self._since + self._seconds - self._clock())

    @property
    def is_over(self) -> bool:
        """Whether the wait has lasted too long."""
        return self.seconds_left == 0

    def is_news(self) -> bool:
        """Return whether a wait has begun of which this has not told yet."""
        is_news = self._since is not None and not self._is_told
        self._is_told = self._is_told or is_news
        return is_news
