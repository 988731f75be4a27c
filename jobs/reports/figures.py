"""Compute the figures of a finished job from its manifest: time, speed, padding."""

from collections.abc import Mapping
from dataclasses import dataclass

from batchloom.jobs.reports import wording
from batchloom.pipelines.ledger.manifest import Manifest


@dataclass(frozen=True)
class Figures:
    """Figures of the run that finished the job; the times of earlier runs of a resumed job are not recorded."""

    timing: Mapping[str, float]
    totals: Mapping[str, int]

    @staticmethod
    def of(manifest: Manifest) -> "Figures":
        return Figures(manifest.timing, manifest.totals)

    @property
    def seconds(self) -> float:
        return self.timing["wall_seconds"]

    @property
    def startup_seconds(self) -> float:
        """Seconds until the first replica was ready; 0 where nothing was left to compute."""
        return self.timing.get("startup_seconds", 0.0)

    @property
    def is_resumed(self) -> bool:
        return self.timing["units_resumed"] > 0

    @property
    def rows_per_second(self) -> float | None:
        """Rows a second, without start-up; None where another run computed some of the rows."""
        seconds = self.seconds - self.startup_seconds
        return None if self.is_resumed or seconds <= 0 else self.totals["rows"] / seconds

    @property
    def tokens_per_second(self) -> float | None:
        """Prompt and output tokens a second, without start-up; None where nothing was computed."""
        seconds = self.seconds - self.startup_seconds
        tokens = self.timing.get("engine_prompt_tokens", 0) + self.timing.get("engine_output_tokens", 0)
        return tokens / seconds if tokens and seconds > 0 else None

    @property
    def padding(self) -> float | None:
        """Computed over real prompt tokens: 1.0 is no padding. None where nothing was computed."""
        real = self.timing.get("engine_prompt_tokens", 0)
        return self.timing.get("engine_padded_tokens", 0) / real if real else None

    def words(self) -> dict[str, str]:
        """Return the known figures by title, formatted."""
        said = {"Time": wording.duration(self.seconds)}
        if self.startup_seconds:
            said["Time"] += f", {wording.duration(self.startup_seconds)} of it start-up"
        speeds = [(self.rows_per_second, "rows/s"), (self.tokens_per_second, "tokens/s")]
        speed = ", ".join(f"{wording.rate(value)} {unit}" for value, unit in speeds if value is not None)
        if speed:
            said["Speed"] = speed
        if self.is_resumed:
            computed, resumed = int(self.timing["units_computed"]), int(self.timing["units_resumed"])
            said["Units"] = f"{computed:,} computed by this run, {resumed:,} found done"
        if self.padding is not None:
            said["Padding"] = f"{self.padding:.3f} padded over real tokens"
        if self.totals["truncated_tokens"]:
            said["Truncated"] = wording.plural(self.totals["truncated_tokens"], "token")
        return said
