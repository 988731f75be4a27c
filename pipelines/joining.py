"""Which Ray cluster a job joins. Whether it answers is asked before Ray does, as that waits silently for minutes."""

import importlib
import logging
import os
import re
import socket
import time

from ray._private import services

from batchloom.pipelines.errors import ConfigError

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds: a head that is started again is back by then
CONNECT_SECONDS = 3.0
_TOKENS = "ray._private.authentication.authentication_token_setup"


def cluster_to_join() -> str | None:
    """Return the address of the cluster that RAY_ADDRESS names, or that `ray start` left on this machine; None where a
    job starts a Ray of its own.

    Where a cluster of this machine is gone, which it says nowhere if it was killed, a job starts its own, with a
    warning. Raises: ConfigError where nothing answers at another address, or RAY_ADDRESS is none.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named and (wrong := wrong_with(named)) is not None:
        raise ConfigError(
            f"RAY_ADDRESS={named!r} is no address of a Ray cluster: {wrong}. Write the host and port of its head "
            "(host:6379), or unset it: the job then runs on this machine alone."
        )
    # None looks for RAY_ADDRESS, then for what `ray start` left; its type does not say so.
    address: str | None = services.canonicalize_bootstrap_address(None)  # type: ignore[arg-type]
    if address is None or _answers(address):
        return address
    if named:
        raise ConfigError(
            f"Cannot connect to the Ray cluster that RAY_ADDRESS={named!r} names: nothing answers at {address} within "
            f"{PATIENCE:g} s. Set it to the address of a running cluster (host:6379), or unset it: the job then runs "
            "on this machine alone."
        )
    if _is_here(_host_and_port(address)[0]):
        log.warning(
            "The Ray cluster that was started on this machine, at %s, is gone: the job starts one of its own. `ray "
            "stop` forgets the old one.",
            address,
        )
        return None
    raise ConfigError(
        f"Cannot connect to the Ray cluster that this machine was joined to by `ray start`: nothing answers at "
        f"{address} within {PATIENCE:g} s. Start it again; or leave it by `ray stop`, and the job runs on this machine "
        "alone."
    )


def wrong_with(named: str) -> str | None:
    """Return what keeps RAY_ADDRESS from being an address; None where it is one, or a word that Ray knows. Ray prints a
    traceback, or tells that int() failed."""
    if named in ("auto", "local"):
        return None
    scheme, _, rest = named.rpartition("://")
    host, colon, port = rest.rpartition(":")
    if scheme not in ("", "ray"):
        return f"it begins with {scheme}://, which is not Ray's own protocol"
    if not colon or not port:
        return "it has no port"
    if not re.fullmatch(r"\[[^\[\]\s]+\]|[^\[\]\s/]+", host):
        return "it has no host" if not host else f"{host!r} is no host"
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        return f"{port!r} is no port: a number from 1 to 65535"
    return None


def begin_showing_token() -> bool:
    """Let Ray show this user's token from here on, and return whether there is one that it did not show before.

    Since 2.60 Ray makes one at the first start of its own on a machine, and what `ray start` begins there asks for it;
    Ray shows it for servers that it starts, and not for who joins. Where a cluster asks for none it must not be shown:
    this process would ask it of the cluster's.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return False
    try:
        logging.getLogger(_TOKENS).setLevel(logging.ERROR)  # it warns that tokens are asked for
        tokens = importlib.import_module(_TOKENS)
        return bool(tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False))
    except (ImportError, AttributeError, TypeError):
        return False  # a version of Ray without tokens, or with others


def _answers(address: str) -> bool:
    """Return whether somebody listens at an address before PATIENCE is over."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            with socket.create_connection(_host_and_port(address), CONNECT_SECONDS):
                return True
        except OSError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.2)


def _host_and_port(address: str) -> tuple[str, int]:
    """Split host:port, [host]:port or ray://host:port. Raises: ValueError where it is neither."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    return host.strip("[]"), int(port)


def _is_here(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        family, kind, *_, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as own:
            own.bind(place)
    except OSError:
        return False
    return True
