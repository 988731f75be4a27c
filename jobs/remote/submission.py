"""Submit a job to a Ray cluster. The Ray job is `batchloom run` on the cluster's head node.

The resolved job file is uploaded as the Ray job's working directory. Ray does not restart an entry point that died:
submit the job again, and it resumes.
"""

import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from batchloom.jobs import spec
from batchloom.jobs.remote import dashboard, shipping
from batchloom.jobs.remote.ray_job import RayJob
from batchloom.models.patience import Patience
from batchloom.models.redaction import redacted
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import ConfigError, JobError, StoreError
from batchloom.pipelines.stores import storage
from batchloom.pipelines.tables.choice import kinds_of_tables

log = logging.getLogger(__name__)

LOOKING = Patience(seconds=10.0)  # somebody waits for the job to be submitted
READY_SECONDS = 60.0  # for a cluster that was started a moment ago
NOT_READY = "No available agent"  # Ray's dashboard, where it cannot start a job yet
ENTRY_POINT = "python -m batchloom run job.yaml"


@dataclass(frozen=True)
class Deployment:
    """How a job is brought to a cluster."""

    ship: bool = False
    """Send this version of batchloom and the packages that it needs, for nodes that have none."""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of the environment, for the driver and its workers."""
    num_cpus: float | None = None
    """That Ray reserves for the driver; it asks for none by itself."""
    memory: int | None = None
    """In bytes, likewise."""


def submit(config: JobConfig, address: str, deployment: Deployment) -> RayJob:
    """Upload a job, start it, and return it. `address`: the dashboard's URL.

    Raises:
        ConfigError: no dashboard answers there, it requires a token that this process does not have, or a package that
            is to be shipped is not installed here.
        JobError: the dashboard refuses the job.
    """
    client = dashboard.connect(address)
    with dashboard.clear_errors(address), tempfile.TemporaryDirectory(prefix="batchloom-") as folder:
        working_dir = Path(folder, "job")
        working_dir.mkdir()
        (working_dir / "job.yaml").write_text(spec.to_yaml(asdict(config)), encoding="utf-8")
        environment: dict[str, Any] = {"working_dir": str(working_dir)}
        if deployment.variables:
            environment["env_vars"] = dict(deployment.variables)
        if deployment.ship:
            urls = [config.model, *config.input.paths, config.output.path]
            environment["pip"] = {"packages": shipping.requirements(urls, _tables(config)), "pip_check": False}
            environment["py_modules"] = [str(shipping.write_wheel(Path(folder)))]
        started = _when_ready(
            lambda: client.submit_job(
                entrypoint=ENTRY_POINT,
                submission_id=_id(config.output.path),
                runtime_env=environment,
                metadata=_metadata(config),
                entrypoint_num_cpus=deployment.num_cpus,
                entrypoint_memory=deployment.memory,
            )
        )
    return RayJob(started, address, client)


def _when_ready(submit: Callable[[], str], seconds: float = READY_SECONDS) -> str:
    """Submit a job, once more where the cluster is too young: its dashboard answers before it can start jobs."""
    until = time.monotonic() + seconds
    while True:
        try:
            return submit()
        except RuntimeError as error:
            if NOT_READY not in str(error):
                raise
            if time.monotonic() > until:
                raise JobError(
                    f"The cluster cannot start jobs: for {seconds:.0f} s no agent was ready on its head. It may have "
                    "started a moment ago, or have too little memory or CPU: see dashboard_agent.log there."
                ) from error
            time.sleep(seconds / 30)


def variables_of(names: Sequence[str]) -> dict[str, str]:
    """Return the values of environment variables. Raises: ConfigError where one is not set here."""
    if missing := [name for name in names if name not in os.environ]:
        raise ConfigError(
            f"--env {', '.join(missing)}: not set in this environment. Export it first: export {missing[0]}=..."
        )
    return {name: os.environ[name] for name in names}


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


def _id(output: str) -> str:
    """Return a name for a Ray job by which people know it: batchloom-summaries-20261126-184500-1f3c."""
    folder = re.sub(r"[^A-Za-z0-9_]+", "-", output.rstrip("/").rpartition("/")[2]).strip("-")[:40] or "job"
    return f"batchloom-{folder}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _tables(config: JobConfig) -> set[str]:
    """Return the kinds of tables that the input is, as far as its store can be looked at from here."""
    try:
        return kinds_of_tables(config.input, LOOKING)
    except StoreError as error:
        log.warning("Whether the input is a Delta or Iceberg table is not seen from here, and what reads them is not "
                    "sent: %s", redacted(str(error)))  # fmt: skip
        return set()


def _metadata(config: JobConfig) -> dict[str, str]:
    """Return what `ray job list` and the dashboard show of a job."""
    told = {
        "batchloom": version("batchloom"),
        "task": config.task,
        "model": config.model,
        "input": ", ".join(config.input.paths),
        "output": config.output.path,
    }
    return {name: redacted(value) for name, value in told.items()}
