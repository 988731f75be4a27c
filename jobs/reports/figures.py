"""Compute the figures of a finished job from its manifest: time, speed, padding."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from batchloom.jobs.reports import wording
from batchloom.pipelines.ledger.manifest import Manifest
from batchloom.pipelines.telemetry.measures import padding, stage_seconds
from batchloom.pipelines.telemetry.usage import Usage, hint, starved_by


@dataclass(frozen=True)
class Figures:
    """Figures of the run that finished the job; the times of earlier runs of a resumed job are not recorded."""

    timing: Mapping[str, float]
    totals: Mapping[str, int]
    num_replicas: int = 1

    @staticmethod
    def of(manifest: Manifest) -> "Figures":
        return Figures(manifest.timing, manifest.totals, int(manifest.timing.get("num_replicas", 1)))

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
        """Rows a second that this run computed, without start-up; None where it computed none, or is of a version that
        did not count them."""
        seconds = self.seconds - self.startup_seconds
        rows = self.timing.get("rows_computed", 0 if self.is_resumed else self.totals["rows"])
        return rows / seconds if rows and seconds > 0 else None

    @property
    def tokens_per_second(self) -> float | None:
        """Prompt and output tokens a second, without start-up; None where nothing was computed."""
        seconds = self.seconds - self.startup_seconds
        tokens = self.timing.get("engine_prompt_tokens", 0) + self.timing.get("engine_output_tokens", 0)
        return tokens / seconds if tokens and seconds > 0 else None

    @property
    def padding(self) -> float | None:
        """Computed over real prompt tokens: 1.0 is no padding. None where nothing was computed."""
        return padding(self.timing)

    @property
    def usage(self) -> Usage:
        """What replicas did with their time."""
        return Usage(**{one.name: self.timing.get(f"replicas_{one.name}_seconds", 0.0) for one in fields(Usage)})

    @property
    def starved_by(self) -> str | None:
        """The stage that replicas waited for; None where they computed most of their time."""
        return starved_by(self.usage, stage_seconds(self.timing), self.num_replicas)

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
        if told := wording.usage(asdict(self.usage)):
            said["Replicas"] = told
        if self.starved_by is not None:
            said["Hint"] = hint(self.usage, self.starved_by)
        if self.padding is not None:
            said["Padding"] = f"{self.padding:.3f} padded over real tokens"
        if self.totals["truncated_tokens"]:
            said["Truncated"] = wording.plural(self.totals["truncated_tokens"], "token")
        return said
