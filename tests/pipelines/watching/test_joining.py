"""A cluster that is gone is said at once: a job waited more than four minutes, without a word."""

import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from batchloom.pipelines import joining
from batchloom.pipelines.errors import ConfigError


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """left(address) -> what `ray start` leaves on a machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(joining, "PATIENCE", 0.1)
    monkeypatch.setattr(joining, "CONNECT_SECONDS", 0.1)
    (tmp_path / "ray").mkdir()
    return lambda address: (tmp_path / "ray" / "ray_current_cluster").write_text(address) and None


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as freed:
        freed.bind(("", 0))
        return freed.getsockname()[1]


@pytest.mark.usefixtures("left")
def test_nothing_named_and_nothing_left_is_a_ray_of_its_own() -> None:
    assert joining.cluster_to_join() is None


def test_a_cluster_that_answers_is_joined(left: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        left(address)
        joined = joining.cluster_to_join()
        assert joined is not None
        assert joined.endswith(address.rpartition(":")[2])
        left("127.0.0.1:1")
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert joining.cluster_to_join() == joined


def test_a_cluster_of_this_machine_that_was_killed_is_forgotten_with_a_warning(
    left: Callable[[str], None], closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    left(f"127.0.0.1:{closed_port}")
    with caplog.at_level(logging.WARNING):
        assert joining.cluster_to_join() is None
    assert f":{closed_port}, is gone: the job starts one of its own" in caplog.text


def test_a_cluster_elsewhere_that_does_not_answer_is_named(
    left: Callable[[str], None], closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(f"127.0.0.1:{closed_port}")
    monkeypatch.setattr(joining, "_is_here", lambda _: False)
    with pytest.raises(ConfigError, match=rf"nothing answers at .*:{closed_port} .* leave it by `ray stop`"):
        joining.cluster_to_join()


@pytest.mark.usefixtures("left")
def test_an_address_that_is_named_and_does_not_answer_is_an_error_here_too(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in (f"127.0.0.1:{closed_port}", f"no-such-host.invalid:{closed_port}"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConfigError, match=f"RAY_ADDRESS='{address}' names: nothing answers"):
            joining.cluster_to_join()


@pytest.mark.parametrize(
    ("named", "wrong"),
    [
        (":1", "it has no host"),
        ("head", "it has no port"),
        ("head:", "it has no port"),
        (" ", "it has no port"),
        ("head:x", "'x' is no port: a number from 1 to 65535"),
        ("head:0", "'0' is no port: a number from 1 to 65535"),
        ("head:99999", "'99999' is no port: a number from 1 to 65535"),
        ("my head:1", "'my head' is no host"),
        ("[::1:1", "'[::1' is no host"),
        ("http://head:8265", "it begins with http://, which is not Ray's own protocol"),
    ],
)
def test_what_is_no_address_is_said_before_ray_is_asked(named: str, wrong: str, monkeypatch) -> None:
    """Ray printed a traceback first ("Malformed host"), or what int() has to say."""
    monkeypatch.setenv("RAY_ADDRESS", named)
    with pytest.raises(ConfigError) as caught:
        joining.cluster_to_join()
    assert str(caught.value).startswith(
        f"RAY_ADDRESS={named!r} is no address of a Ray cluster: {wrong}. Write the host"
    )


@pytest.mark.parametrize("named", ["auto", "local", "head:6379", "10.0.0.1:1", "[::1]:6379", "ray://head:10001"])
def test_what_is_an_address_is_left_to_ray(named: str) -> None:
    assert joining.wrong_with(named) is None
