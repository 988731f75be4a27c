"""A job on a Ray cluster: its log as it grows, its end, its exit code; and the jobs that a cluster knows."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from batchloom.jobs.exit_codes import ExitCode
from batchloom.jobs.remote.dashboard import clear_errors, connect
from batchloom.jobs.reports import wording
from batchloom.pipelines.errors import ConfigError, JobError
from batchloom.pipelines.watching.environment import unready

STATUS_SECONDS = 0.5  # between two polls of a job whose log has ended
GONE_SECONDS = 10.0  # to wait for a dashboard that broke a connection
STOP_SECONDS = 60.0  # for a job that was told to stop: Ray kills it after RAY_JOB_STOP_WAIT_TIME_S of the head, 3
MOST_VAIN = 5  # connections one after the other that bring nothing new: then the log comes when the job has ended
SHOWN = 10  # jobs in a message
NO_ENVIRONMENT = "Failed to set up runtime environment"  # Ray, of a job whose command never began


@dataclass(frozen=True)
class RayJob:
    """A job that was submitted."""

    id: str
    address: str
    """The dashboard's URL."""
    client: Any

    @staticmethod
    def find(job_id: str, address: str) -> "RayJob":
        """Return a job of a cluster. Raises: ConfigError where it has none of this id, or no dashboard answers."""
        client = connect(address)
        known = _sights(client, address)
        if job_id not in [one.id for one in known]:
            others = ", ".join(one.id for one in known[:SHOWN]) or "none"
            raise ConfigError(
                f"The cluster at {address} has no batchloom job {job_id}. The newest that it has: {others}."
            )
        return RayJob(job_id, address, client)

    def log(self) -> str:
        """Return the job's log so far. Raises: ConfigError, JobError as `clear_errors`."""
        with clear_errors(self.address):
            text: str = self.client.get_job_logs(self.id)
            return text

    def follow(self, tell: Callable[[str], None]) -> ExitCode:
        """Pass the job's log to `tell` as it grows, and return the job's exit code. A connection that breaks, as what
        stands between does with quiet ones, is made again.

        Raises: JobError where Ray could not run the job's command or lost it, or the cluster is gone.
        """
        log, is_whole, num_vain = _Log(tell), False, 0
        while not is_whole and num_vain < MOST_VAIN:
            before = log.num_told
            log.begins_again()
            try:
                with clear_errors(self.address):
                    asyncio.run(self._follow_log(log))
                is_whole = True
            except (ConfigError, JobError) as error:
                if self._info_after(error).status.is_terminal():
                    break
                num_vain = num_vain + 1 if log.num_told == before else 0
                time.sleep(STATUS_SECONDS)
        info = self._end()
        if not is_whole:
            log.begins_again()
            log(self.log())
        return self._exit_code(info)

    def _info_after(self, error: Exception) -> Any:
        """Return what Ray says of the job, after an error of its dashboard. Raises: JobError where it says nothing."""
        until = time.monotonic() + GONE_SECONDS
        while True:
            try:
                with clear_errors(self.address):
                    return self.client.get_job_info(self.id)
            except (ConfigError, JobError):
                if time.monotonic() > until:
                    raise JobError(
                        f"The cluster at {self.address} does not answer any more: its head has ended, or the way to "
                        f"it. Whether {self.id} goes on is seen in its output, by batchloom status. Where it does, "
                        "batchloom attach follows it again; where it does not, the same submit goes on from there."
                    ) from error
                time.sleep(STATUS_SECONDS)

    def stop(self) -> ExitCode:
        """Tell the job to stop, and return its exit code. One that has ended stays as it is.

        Raises: JobError where it does not end; ConfigError where the dashboard does not answer.
        """
        with clear_errors(self.address):
            if not self.client.get_job_info(self.id).status.is_terminal():
                self.client.stop_job(self.id)
        return self._exit_code(self._end(STOP_SECONDS))

    async def _follow_log(self, tell: Callable[[str], None]) -> None:
        async for text in self.client.tail_job_logs(self.id):
            tell(text)

    def _end(self, seconds: float = float("inf")) -> Any:
        """Return what Ray says of the job when it has ended."""
        until = time.monotonic() + seconds
        with clear_errors(self.address):
            while not (info := self.client.get_job_info(self.id)).status.is_terminal():
                if time.monotonic() > until:
                    raise JobError(
                        f"{self.id} was told to stop and still runs after {seconds:.0f} s. batchloom logs {self.id} "
                        "has what it does; batchloom stop asks again."
                    )
                time.sleep(STATUS_SECONDS)
        return info

    def _exit_code(self, info: Any) -> ExitCode:
        code = info.driver_exit_code
        if info.status == "STOPPED":  # Ray keeps no exit code then
            return ExitCode.TERMINATED
        if code is None and NO_ENVIRONMENT in (info.message or ""):
            raise JobError(f"{self.id} did not start. {unready(info.message)}")
        if code is None or code not in set(ExitCode):
            raise JobError(
                f"{self.id} ended as {info.status} without an exit code of ours ({code}): {info.message} batchloom "
                f"logs {self.id} has its last words; where its head was lost, the same submit goes on."
            )
        return ExitCode(code)


@dataclass
class _Log:
    """Tells a log that is read from its beginning, as often as it is, once."""

    tell: Callable[[str], None]
    num_told: int = 0
    """Characters."""
    _num_read: int = 0

    def begins_again(self) -> None:
        self._num_read = 0

    def __call__(self, text: str) -> None:
        start = self._num_read
        self._num_read += len(text)
        if self._num_read > self.num_told:
            self.tell(text[max(0, self.num_told - start) :])
            self.num_told = self._num_read


@dataclass(frozen=True, kw_only=True)
class JobSight:
    """What a cluster tells of a job that was submitted by us."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    started: float | None
    """Seconds since 1970, as `ended`."""
    ended: float | None
    exit_code: int | None
    task: str
    output: str
    version: str
    """Of batchloom, where it was submitted."""

    def words(self) -> dict[str, str]:
        """Return what a list of jobs shows, by column."""
        took = (self.ended or time.time()) - self.started if self.started else None
        return {
            "job": self.id,
            "state": self.status.lower() if self.exit_code is None else f"{self.status.lower()} ({self.exit_code})",
            "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(self.started)) if self.started else "",
            "took": wording.duration(took) if took is not None else "",
            "task": self.task,
            "output": self.output,
        }


def jobs_of(address: str) -> list[JobSight]:
    """Return the batchloom jobs of a cluster, newest first. Raises: ConfigError, JobError as `clear_errors`."""
    return _sights(connect(address), address)


def _sights(client: Any, address: str) -> list[JobSight]:
    with clear_errors(address):
        found = [one for one in client.list_jobs() if one.submission_id and "batchloom" in (one.metadata or {})]
    sights = [
        JobSight(
            id=one.submission_id,
            status=str(getattr(one.status, "value", one.status)),
            started=_seconds(one.start_time),
            ended=_seconds(one.end_time),
            exit_code=one.driver_exit_code,
            task=one.metadata.get("task", ""),
            output=one.metadata.get("output", ""),
            version=one.metadata["batchloom"],
        )
        for one in found
    ]
    return sorted(sights, key=lambda one: one.started or 0.0, reverse=True)


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
