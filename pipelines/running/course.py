"""The course of a run: how much was answered at some moments. They are few, however long it takes."""

from dataclasses import dataclass, field

from batchloom.pipelines.counts import Counts

MOST = 96  # moments: where there are more, every second one is forgotten


@dataclass
class Course:
    """Moments of a run, and what it had answered until then."""

    _moments: list[tuple[float, int, int, int]] = field(default_factory=lambda: [(0.0, 0, 0, 0)])
    _last: tuple[float, int, int, int] = (0.0, 0, 0, 0)
    _least: float = 1.0
    """Seconds between two moments."""

    def add(self, seconds: float, counts: Counts) -> None:
        """Add a unit that was answered so many seconds after the start."""
        _, rows, read, written = self._last
        sums = rows + counts.num_rows, read + counts.num_input_tokens, written + counts.num_output_tokens
        self._last = (seconds, *sums)
        if seconds - self._moments[-1][0] > self._least:
            self._moments.append(self._last)
        if len(self._moments) > MOST:
            del self._moments[1::2]
            self._least = 2 * seconds / MOST

    def columns(self) -> dict[str, tuple[float, ...]]:
        """Return the moments as columns: `seconds`, `rows`, `input_tokens` and `output_tokens`; the last is the end."""
        moments = self._moments if self._moments[-1] == self._last else [*self._moments, self._last]
        seconds, *sums = zip(*moments, strict=True)
        rounded = tuple(round(second, 3) for second in seconds)
        return {"seconds": rounded, **dict(zip(("rows", "input_tokens", "output_tokens"), sums, strict=True))}
