"""Credentials in a job file: they open the input, and stand nowhere that is written or printed."""

import http.server
import json
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchloom import pipelines
from batchloom.jobs.spec import load
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.ledger.verification import _input_of
from batchloom.pipelines.stores.storage import Store

SECRET = "s3cr3t-W0RD"


class Server(http.server.ThreadingHTTPServer):
    """Gives one file to those who have the password and the signature."""

    def __init__(self, content: bytes) -> None:
        self.is_broken = False
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                start, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
                piece = content[int(start) : int(end or len(content)) + 1]
                is_known = self.headers.get("Authorization") == f"Basic {b64encode(f'me:{SECRET}'.encode()).decode()}"
                is_signed = self.path.endswith(f"?sig={SECRET}")
                self.send_response(206 if is_known and is_signed and not server.is_broken else 400)
                self.send_header("Content-Length", str(len(piece)))
                self.send_header("Content-Range", f"bytes {start}-{int(start) + len(piece) - 1}/{len(content)}")
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("ETag", '"1"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(piece)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def server(corpus: Path) -> Iterator[Server]:
    server = Server((corpus / "a.parquet").read_bytes())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_url_with_credentials_is_read_and_told_without_them(
    server: Server, batchloom: Callable[..., Any], make_job: Callable[..., Path]
) -> None:
    url = f"http://me:{SECRET}@127.0.0.1:{server.server_port}/a.parquet?sig={SECRET}"
    job = make_job(input={"paths": [url], "keep_columns": ["id"]})
    plan = pipelines.plan(load(str(job)))
    assert plan.num_rows == 40
    assert {shard.name for shard in plan.shards} == {"a.parquet"}
    record = plan.job_record()
    assert record["job"]["input"]["paths"] == [f"http://***@127.0.0.1:{server.server_port}/a.parquet?sig=***"]
    assert SECRET not in json.dumps([record, [part.name(plan.fingerprint) for part in plan.parts]])

    for is_broken in (False, True):
        server.is_broken = is_broken
        for arguments in ((), ("--json",)):
            said = batchloom("plan", job, *arguments)
            assert said.code == (2 if is_broken else 0)
            assert SECRET not in said.out + said.err


def test_a_verification_takes_the_credentials_from_the_job_where_it_is_the_same(finished: Any) -> None:
    from batchloom.pipelines.ledger.ledger import read_manifest

    store = Store(str(finished.output))
    manifest = read_manifest(store)
    assert manifest is not None
    told = {**manifest.job["input"], "paths": ["http://***@h/a?sig=***"], "storage_options": {"anon": False}}
    object.__setattr__(manifest, "job", {**manifest.job, "input": told})
    given = InputConfig(paths=(f"http://me:{SECRET}@h/a?sig={SECRET}",), storage_options={"key": SECRET})
    found = _input_of(store, manifest, {"secret": SECRET}, given)
    assert found.paths == given.paths
    assert found.storage_options == {"anon": False, "key": SECRET, "secret": SECRET}
    assert _input_of(store, manifest, {}, InputConfig(paths=("/elsewhere",))).paths == ("http://***@h/a?sig=***",)
    assert _input_of(store, manifest, {}, None).paths == ("http://***@h/a?sig=***",)


def test_what_a_finished_job_leaves_is_for_its_owner(
    finished: Any, batchloom: Callable[..., Any], tmp_path: Path
) -> None:
    batchloom("report", finished.output, "--html", tmp_path / "report.html")
    for path in (*(finished.output / "_batchloom").iterdir(), tmp_path / "report.html"):
        assert path.stat().st_mode & 0o777 == 0o600
