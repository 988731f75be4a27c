"""The status of a job, read from its output folder alone: how much is done, and when the last part was written."""

import logging
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from batchloom import pipelines
from batchloom.jobs.reports import wording
from batchloom.jobs.reports.view import View
from batchloom.models.errors import ModelError
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.ledger import heartbeat
from batchloom.pipelines.ledger.heartbeat import Heartbeat

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """How much of a job is done."""

    view: View
    num_rows: int | None
    """That the job looks at, those that it leaves out included; None where its model or input cannot be read from
    here."""
    seconds_since_part: float | None
    """Since the newest part was written; None without parts, or where the filesystem has no times."""
    heartbeat: Heartbeat | None = None
    """What its last driver said; None where it is an earlier version's."""
    is_running: bool = False
    num_rows_excluded: int | None = None
    """More rows, in files that the selection leaves out by their partitions; None where that is not looked at."""

    @staticmethod
    def of(view: View, job: JobConfig | None = None) -> "Status":
        """`job`: with the credentials that the output's record has not; None takes the record's."""
        last = heartbeat.read(view.store)
        is_running = last is not None and last.is_alive(heartbeat.Lock(view.store))
        if last is not None and is_running and last.num_rows:
            told: tuple[int | None, int | None] = last.num_rows, None
        else:
            told = _num_rows(view, job)
        return Status(view, told[0], _seconds_since_part(view), last, is_running, told[1])

    @property
    def is_finished(self) -> bool:
        return self.view.manifest is not None

    def values(self) -> dict[str, Any]:
        return {
            "finished": self.is_finished,
            "running": self.is_running,
            "output": self.view.store.url,
            "num_parts_done": len(self.view.records),
            "num_rows": self.num_rows,
            "num_rows_done": self._num_done,
            "num_rows_in_parts": self.view.totals["rows"],
            "num_rows_left_out": self._num_left_out,
            "num_rows_excluded": self.num_rows_excluded,
            "parts_missing_or_changed": self.view.spoilt,
            "num_errors": self.view.totals["errors"],
            "errors_by_kind": dict(self.view.errors_by_kind),
            "seconds_since_part": self.seconds_since_part,
            "heartbeat": None if self.heartbeat is None else asdict(self.heartbeat),
        }

    def words(self) -> dict[str, str]:
        return {
            "Job": f"{self.view.job['task']}, {self.view.job['model']}",
            "State": self._state(),
            **self._driver(),
            "Rows": _of(self._num_done, self.num_rows) + self._in_no_part() + self._left_out(),
            "Parts": f"{len(self.view.records):,}",
            "Errors": wording.kinds(self.view.errors_by_kind) or "none",
            **self._last_part(),
        }

    def _state(self) -> str:
        spoilt, num_configurations = self.view.spoilt, self.view.num_configurations
        state = "finished" if self.is_finished else "not finished"
        if num_configurations > 1:
            return f"{state}; {num_configurations} configurations have written here: remove the parts of all but one"
        if spoilt:
            return f"{state}; {len(spoilt):,} of {len(self.view.records):,} parts are missing or have changed since"
        if self.is_running:
            return "running"
        return state if self.is_finished else f"{state}; the same command goes on with it"

    @property
    def _num_done(self) -> int:
        return self.view.totals["rows"] + self._num_left_out + self.view.num_rows_answered

    @property
    def _num_left_out(self) -> int:
        """Of the rows in parts' spans: a manifest's total has those in excluded files as well."""
        return self.view.records.totals()["left_out"]

    def _left_out(self) -> str:
        left_out = f", {self._num_left_out:,} of them left out" if self._num_left_out else ""
        num = self.num_rows_excluded
        return left_out + (f"; {num:,} more in files that their partitions leave out" if num else "")

    def _driver(self) -> dict[str, str]:
        """Say what its driver said last; nothing of a job that is finished."""
        last = self.heartbeat
        if last is None or (self.is_finished and not self.is_running):
            return {}
        heard = f"process {last.process_id} on {last.host}, heard {wording.duration(last.age())} ago"
        if self.is_running:
            more = {"Replicas": _replicas(last), "Hint": last.hint, "Trouble": last.trouble}
            return {"Driver": heard, **_speed(last), **{name: words for name, words in more.items() if words}}
        if last.ended:
            return {"Ended": f"{wording.duration(last.age())} ago: {last.ended}"}
        told = f"; its last trouble: {last.trouble}" if last.trouble else ""
        return {"Ended": f"without a word (killed, or its machine or way to the output is gone): {heard}{told}"}

    def _in_no_part(self) -> str:
        return f", {self.view.num_rows_answered:,} of them not yet in a part" if self.view.num_rows_answered else ""

    def _last_part(self) -> dict[str, str]:
        if self.seconds_since_part is None:
            return {}
        return {"Last part": f"written {wording.duration(self.seconds_since_part)} ago"}


def _speed(last: Heartbeat) -> dict[str, str]:
    """Say how fast a job is, and what it does before it is."""
    if last.stage:
        return {"Stage": last.stage}
    if not last.rows_per_second:
        return {"Speed": "not known yet"}
    tokens = f"{wording.rate(last.input_tokens_per_second)} tokens/s in"
    if last.output_tokens_per_second:
        tokens += f", {wording.rate(last.output_tokens_per_second)} out"
    padding = f", padding {last.padding:.2f}" if last.padding else ""
    left = wording.duration((last.num_rows - last.num_rows_done) / last.rows_per_second)
    return {"Speed": f"{wording.rate(last.rows_per_second)} rows/s, {tokens}{padding}; {left} left"}


def _replicas(last: Heartbeat) -> str:
    """Say how many replicas there are and what they do, and which of several waits longest for units."""
    pending = f", {last.num_replicas_starting:,} pending" if last.num_replicas_starting else ""
    units = f", {wording.plural(last.num_units_in_flight, 'unit')} in flight" if last.num_units_in_flight else ""
    usage = wording.usage(asdict(last.usage))
    told = f"{last.num_replicas:,} alive{pending}{units}{f'; {usage}' if usage else ''}"
    if len(last.most_waiting) > 1 and last.most_waiting[0].usage.total:
        most = last.most_waiting[0]
        where = most.node or "a node that is gone"
        told += f"; the one that waits longest, on {where}: {wording.usage(asdict(most.usage))}"
    return told


def _num_rows(view: View, job: JobConfig | None) -> tuple[int | None, int | None]:
    """Return how many rows the job looks at, and how many more are in files that it excludes."""
    if view.manifest is not None:
        totals = view.records.totals()
        num_excluded = view.manifest.totals["left_out"] - totals["left_out"]
        return totals["rows"] + totals["left_out"], num_excluded
    try:
        from batchloom.jobs import spec

        plan = pipelines.plan(job or spec.from_record(view.job, view.store.url))
    except (ConfigError, ModelError):
        return None, None
    return plan.num_rows, plan.num_rows_excluded


def _seconds_since_part(view: View) -> float | None:
    """Local disks give `mtime` in seconds, S3 `LastModified` as a datetime; other filesystems may give neither."""
    parts = {view.store.path(record.part) for record in view.records}
    try:
        found = view.store.filesystem.find(view.store.path(), detail=True)
    except Exception as error:  # of any filesystem, which was listed a moment ago: the rest is told without a time
        log.warning("When the last part was written cannot be read: %s: %s", type(error).__name__, error)
        return None
    times = [info.get("mtime") or info.get("LastModified") for path, info in found.items() if path in parts]
    seconds = [t.timestamp() if isinstance(t, datetime) else t for t in times if isinstance(t, (datetime, float, int))]
    return max(0.0, time.time() - max(seconds)) if seconds else None


def _of(done: int, planned: int | None) -> str:
    if not planned:
        return f"{done:,}" if planned is None else f"{done:,} of {planned:,}"
    return f"{done:,} of {planned:,} ({done / planned:.0%})"
