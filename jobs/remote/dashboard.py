"""The dashboard of a Ray cluster, by which jobs are submitted. Its errors become ours."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from batchloom.pipelines.errors import ConfigError, JobError

PORT = 8265
TALKATIVE = (  # they log uploads and sockets
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


def url_of(address: str) -> str:
    """Return the dashboard's URL: `head` is http://head:8265. Raises: ConfigError."""
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"--address {address}: {error}. Write the dashboard's host and port, head:{PORT}.") from error
    if parts.scheme not in ("http", "https"):
        raise ConfigError(
            f"--address {address}: jobs go to the cluster's dashboard, by http or https. Write "
            f"{parts.hostname or 'head'}:{PORT}, or the port that its head was given as --dashboard-port."
        )
    if not parts.hostname:
        raise ConfigError(f"--address {address}: it names no host. Write the dashboard's host and port, head:{PORT}.")
    return url if port or parts.scheme != "http" else f"http://{parts.netloc}:{PORT}{parts.path}"


def connect(address: str) -> Any:
    """Return Ray's client of the dashboard at a URL. Raises: ConfigError, JobError as `clear_errors`."""
    with clear_errors(address):
        from ray.job_submission import JobSubmissionClient

        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        return JobSubmissionClient(address)


@contextmanager
def clear_errors(address: str) -> Iterator[None]:
    """Replace errors of Ray's client meanwhile.

    Raises:
        ConfigError: no dashboard answers at the address, or it requires a token that this process does not have.
        JobError: the dashboard does not do as asked.
    """
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
            f"http://<head node>:{PORT}, and see that this machine can reach it."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: the dashboard's answer is an error
        raise JobError(
            f"The Ray dashboard at {address} did not do as asked: {str(error).rstrip('.')}. See that the cluster has "
            "the Ray of this machine; its dashboard.log says more."
        ) from error
