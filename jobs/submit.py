"""Submit a job to a Ray cluster and follow its log. The Ray job is `batchloom run` on the cluster's head node.

The resolved job file is uploaded as the Ray job's working directory. Ray does not restart an entry point that died:
submit the job again, and it resumes.
"""

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from batchloom.jobs import spec
from batchloom.jobs.exit_codes import ExitCode
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import ConfigError, JobError
from batchloom.pipelines.stores import storage

ENTRY_POINT = "python -m batchloom run job.yaml"
STATUS_SECONDS = 0.5  # between two polls of a job whose log has ended
TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")  # they log uploads and sockets


@dataclass(frozen=True)
class Submission:
    """A submitted job."""

    id: str
    address: str
    client: Any

    @staticmethod
    def start(config: JobConfig, address: str) -> "Submission":
        """Upload the job and start it.

        Raises:
            ConfigError: `address` is no URL, no dashboard answers there, or it requires a token that this process does
                not have.
            JobError: the dashboard refuses the job.
        """
        if "://" not in address:
            raise ConfigError(f"--address {address}: it is no URL. Write http://{address}, the dashboard's address.")
        with _clear_errors(address):
            from ray.job_submission import JobSubmissionClient

            for name in TALKATIVE:
                logging.getLogger(name).setLevel(logging.WARNING)
            client = JobSubmissionClient(address)
            with tempfile.TemporaryDirectory(prefix="batchloom-") as folder:
                Path(folder, "job.yaml").write_text(spec.to_yaml(asdict(config)), encoding="utf-8")
                started = client.submit_job(entrypoint=ENTRY_POINT, runtime_env={"working_dir": folder})
        return Submission(started, address, client)

    def follow(self, tell: Callable[[str], None]) -> ExitCode:
        """Pass the job's log to `tell` as it grows, and return the job's exit code.

        Raises:
            JobError: Ray could not run the job's command or lost it; the message is Ray's.
            ConfigError: the dashboard does not answer any more.
        """
        with _clear_errors(self.address):
            asyncio.run(self._follow_log(tell))
            while not (info := self.client.get_job_info(self.id)).status.is_terminal():
                time.sleep(STATUS_SECONDS)
        code = info.driver_exit_code
        if info.status == "STOPPED":  # by `ray job stop`: Ray keeps no exit code then
            return ExitCode.TERMINATED
        if code is None or code not in set(ExitCode):
            raise JobError(f"{self.id} ended as {info.status} without an exit code of ours ({code}): {info.message}")
        return ExitCode(code)

    async def _follow_log(self, tell: Callable[[str], None]) -> None:
        async for text in self.client.tail_job_logs(self.id):
            tell(text)


def absolute(config: JobConfig) -> tuple[JobConfig, list[str]]:
    """Return the job with absolute local paths, and those paths: the cluster has another working directory."""
    local: list[str] = []

    def fixed(path: str) -> str:
        if "://" not in path:
            local.append(storage.absolute(path))
        return storage.absolute(path)

    config = replace(
        config,
        model=fixed(config.model),
        input=replace(config.input, paths=tuple(fixed(path) for path in config.input.paths)),
        output=replace(config.output, path=fixed(config.output.path)),
    )
    return config, local


@contextmanager
def _clear_errors(address: str) -> Iterator[None]:
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ConfigError(
            f"The cluster at {address} wants a token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the one that its "
            "head was started with (or put it into the file that RAY_AUTH_TOKEN_PATH names)."
        ) from error
    except ConnectionError as error:
        raise ConfigError(
            f"No Ray dashboard answers at {address}. Give the address of the cluster's dashboard, usually "
            "http://<head node>:8265, and see that this machine can reach it."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: the dashboard's answer is an error
        raise JobError(
            f"The Ray dashboard at {address} did not do as asked: {type(error).__name__}: {error}"
        ) from error
