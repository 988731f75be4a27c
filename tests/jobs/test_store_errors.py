"""A store that refuses: every command says it in one message, as `plan` does. It was a hundred lines of traceback."""

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DENIED = (
    b"<?xml version='1.0'?><Error><Code>InvalidAccessKeyId</Code><Message>The AWS Access Key Id you provided does not "
    b"exist in our records.</Message></Error>"
)


class Denying(http.server.BaseHTTPRequestHandler):
    """An S3 that knows no key."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", str(len(DENIED)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(DENIED)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def denying() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Denying)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Only these credentials and this endpoint."""

    def only(**variables: str) -> None:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        empty = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"), "AWS_CONFIG_FILE": str(tmp_path / "none")}
        defaults = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1", **empty}
        for name, value in (defaults | variables).items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr("batchloom.models.patience.Patience.doubtful_seconds", 0.0)
    monkeypatch.setattr("batchloom.models.patience.Patience.__init__.__defaults__", (2.0, 0.0, 60.0))
    return only


KEY = {"AWS_ACCESS_KEY_ID": "k3y-of-nobody", "AWS_SECRET_ACCESS_KEY": "s3cr3t"}


@pytest.mark.parametrize("command", ["show", "status", "verify", "report", "plan", "run"])
@pytest.mark.parametrize("trouble", ["no credentials", "a wrong key", "a dead endpoint", "an unknown option"])
def test_a_store_that_refuses_is_one_message(
    environment: Any,
    denying: str,
    batchloom: Callable[..., Any],
    make_job: Callable[..., Path],
    command: str,
    trouble: str,
) -> None:
    match trouble:
        case "no credentials":
            environment(AWS_ENDPOINT_URL=denying)
        case "a wrong key":
            environment(AWS_ENDPOINT_URL=denying, **KEY)
        case _:
            environment(AWS_ENDPOINT_URL="http://127.0.0.1:1", **KEY)
    options = {"storage_options": {"no_such_option": 1}} if trouble == "an unknown option" else {}
    target = make_job(output={"path": "s3://bucket/out", **options})
    said = batchloom(command, "s3://bucket/out" if not options and command not in ("plan", "run") else target)
    assert said.code in (1, 2)
    message = [line for line in said.err.splitlines() if line.startswith("Error: ")]
    assert len(message) == 1
    assert "s3://bucket/out" in message[0]
    assert len(said.err.splitlines()) <= 4
    assert "s3cr3t" not in said.err + said.out
