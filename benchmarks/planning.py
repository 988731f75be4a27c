"""Time the planning of many shards in an object store: the first time, and again with the footers that were kept.

    python -m benchmarks.planning --shards 1000 10000 100000

The store is moto's server, a process of its own. Shards have 30 row groups of 5 columns. Seconds, processor time and
peak memory are those of a process that does nothing but plan; requests and bytes are counted by the server. The server
is written in Python and takes most of the time on a machine of few cores, so compare processor times.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.models.patience import Patience
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.formats.base import Columns
from batchloom.pipelines.planning.kept_footers import NAME, KeptFooters
from batchloom.pipelines.planning.shards import find_shards, keep_footers
from batchloom.pipelines.stores.storage import Store
from benchmarks import record

COLUMNS = Columns(("text",), None)
NUM_GROUPS, GROUP_ROWS = 30, 10


def shard(num_groups: int) -> bytes:
    sink = pa.BufferOutputStream()
    rows = num_groups * GROUP_ROWS
    columns: dict[str, Iterable[Any]] = {name: range(rows) for name in ("id", "day", "user", "label")}
    table = pa.table(columns | {"text": [f"text {row}" for row in range(rows)]})
    pq.write_table(table, sink, row_group_size=GROUP_ROWS)
    return sink.getvalue().to_pybytes()


# ------------------------------------------------------------------------------------------------------ the store


class Counting:
    """The server, which counts what it is asked and what it sends; `/counts` tells both, and starts anew."""

    def __init__(self, server: Callable[..., Iterable[bytes]]) -> None:
        self._server = server
        self.num_requests = self.num_bytes = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/counts":
            told = json.dumps({"requests": self.num_requests, "bytes": self.num_bytes}).encode()
            self.num_requests = self.num_bytes = 0
            start_response("200 OK", [])
            return [told]
        self.num_requests += 1
        content = list(self._server(environ, start_response))
        self.num_bytes += sum(map(len, content))
        return content


def serve(num_shards: int) -> None:
    """Serve a bucket of so many shards, and print the port."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket("many", "us-east-1")
    content = shard(NUM_GROUPS)
    for number in range(num_shards):
        backend.put_object("many", f"in/day={number % 100:02d}/part-{number:06d}.parquet", content)
    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # connections stay, as with a real store
    WSGIRequestHandler.log = lambda *_: None  # type: ignore[method-assign]
    server = make_server("127.0.0.1", 0, Counting(DomainDispatcherApplication(create_backend_app)), threaded=True)
    print(server.port, flush=True)
    server.serve_forever()


# ------------------------------------------------------------------------------------------------------- planning


def plan(port: int, folder: str) -> dict[str, float]:
    """Plan and keep the footers; return what that took."""
    options = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}"}}
    config = InputConfig(paths=("s3://many/in",), storage_options=options)
    kept = KeptFooters(Store(folder), COLUMNS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    shards, schemas = find_shards(config, Patience(), COLUMNS, kept)
    took = {"shards": len(shards), "wall s": time.perf_counter() - wall, "cpu s": time.process_time() - cpu}
    keep_footers(kept, config, Patience(), shards, schemas)
    took |= {"wall with keeping s": time.perf_counter() - wall, "cpu with keeping s": time.process_time() - cpu}
    return took | {"MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3}


def child(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.planning", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def measure(num_shards: int) -> list[record.Figure]:
    figures = []
    server = child("--serve", str(num_shards))
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        with tempfile.TemporaryDirectory() as folder:
            for round_name in ("first", "again"):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/counts"):
                    done, _ = child("--plan", str(port), "--folder", folder).communicate()
                took = json.loads(done)
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/counts") as told:
                    took |= json.load(told)
                took["kept MB"] = (Path(folder) / NAME).stat().st_size / 1e6
                line = ", ".join(f"{name} {value:,.2f}" for name, value in took.items())
                print(f"{num_shards:,} shards, {round_name}: {line}", flush=True)
                figures += record.told(took, f"{num_shards:,} shards, {round_name}")
    finally:
        server.kill()
        server.wait()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[1000, 10_000])
    record.add_options(parser)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve)
    elif asked.plan:
        print(json.dumps(plan(asked.plan, asked.folder)))
    else:
        figures = [figure for num_shards in asked.shards for figure in measure(num_shards)]
        title = f"planning shards of {NUM_GROUPS} row groups in an object store (moto's server on this machine)"
        record.write(asked.results, "planning", title, {"row_groups": NUM_GROUPS, "columns": 5}, figures)


if __name__ == "__main__":
    main()
