"""What reading and planning fetch from an object store, counted by the proxy: the wanted bytes and few requests."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.models.patience import Patience
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.formats.base import Columns
from batchloom.pipelines.formats.decode import decoded
from batchloom.pipelines.formats.footer import leaves_of
from batchloom.pipelines.planning.kept_footers import KeptFooters
from batchloom.pipelines.planning.shards import Shard, find_shards, keep_footers
from batchloom.pipelines.planning.spans import Range
from batchloom.pipelines.stores.connection import Connection
from batchloom.pipelines.stores.patient_file import PatientFile
from batchloom.pipelines.stores.storage import Store
from tests.faults import swift_servers
from tests.faults.conftest import SWIFT
from tests.faults.proxy import FaultyProxy, Sent
from tests.processes import free_ports

NUM_GROUPS, GROUP_ROWS = 30, 200
WANTED = ("id", "text")
AT_MOST = 1.1  # bytes fetched over bytes wanted


@dataclass(frozen=True)
class Served:
    """An object store behind a proxy that counts."""

    proxy: FaultyProxy
    options: dict[str, Any]

    def config(self) -> InputConfig:
        return InputConfig(paths=("s3://wide/in",), storage_options=self.options)

    def counted(self) -> list[Sent]:
        """Return what was sent since the last call."""
        sent, self.proxy.sent = self.proxy.sent, []
        return sent


@pytest.fixture(scope="module", params=["moto", pytest.param("swift", marks=pytest.mark.faults)])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A shard of 31 MB in row groups of 1 MB, of which `id` and `text` are 0.7 MB."""
    (port,) = free_ports(1)
    with ExitStack() as stack:
        if request.param == "moto":
            from moto.server import ThreadedMotoServer

            server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
            server.start()
            stack.callback(server.stop)
            upstream = "http://{}:{}".format(*server.get_host_and_port())
        elif (SWIFT / "swift-proxy-server").exists():
            upstream = stack.enter_context(swift_servers.running(tmp_path_factory.mktemp("swift"), SWIFT))
        else:
            pytest.skip("OpenStack Swift is not installed: make build/swift/.installed")
        proxy = stack.enter_context(FaultyProxy(upstream, port).running())
        options = {
            "key": swift_servers.USER,
            "secret": swift_servers.KEY,
            "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}"},
        }
        filesystem = fsspec.filesystem("s3", **options)
        filesystem.makedirs("wide", exist_ok=True)
        filesystem.pipe_file("wide/in/a.parquet", wide_shard())
        yield Served(proxy, options)


def wide_shard() -> bytes:
    chance = random.Random(0)
    letters = partial(chance.choices, "etaoin shrdlu")
    sink = pa.BufferOutputStream()
    schema = pa.schema([("id", pa.int64()), ("image", pa.binary()), ("text", pa.string()), ("label", pa.string())])
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for group in range(NUM_GROUPS):
            ids = range(group * GROUP_ROWS, (group + 1) * GROUP_ROWS)
            columns = [
                list(ids),
                [chance.randbytes(5_000) for _ in ids],
                ["".join(letters(k=200)) for _ in ids],
                [str(i % 3) for i in ids],
            ]
            writer.write_table(pa.table(columns, schema))
    return sink.getvalue().to_pybytes()


def wanted_bytes(served: Served, groups: range) -> int:
    path = "wide/in/a.parquet"
    metadata = pq.read_metadata(pa.BufferReader(fsspec.filesystem("s3", **served.options).cat_file(path)))
    leaves = leaves_of(metadata, WANTED)
    return sum(metadata.row_group(group).column(leaf).total_compressed_size for group in groups for leaf in leaves)


def read(served: Served, shard: Shard, ranges: list[Range]) -> list[int]:
    """Return the ids of the rows, as one read task reads them."""
    connection = Connection("s3://wide/in", served.options, Patience(seconds=5), {"read"}, is_fresh=True)
    ids = []
    with PatientFile(connection, shard.source.path) as file:
        for table in decoded(file, WANTED, ranges, shard.source.footer_bytes):
            file.check()
            assert table["text"].null_count == 0
            ids += table["id"].to_pylist()
    return ids


@pytest.mark.parametrize(
    ("ranges", "groups", "num_requests"),
    [
        pytest.param([(200, 400)], range(1, 2), 2, id="one unit"),
        pytest.param([(210, 230), (300, 390)], range(1, 2), 2, id="parts of a row group"),
        pytest.param([(3000, 3500)], range(15, 18), 4, id="a unit across row groups"),
        pytest.param([(row, row + 100) for row in range(0, 6000, 100)], range(30), 31, id="a whole shard"),
    ],
)
def test_only_the_wanted_column_chunks_are_fetched(
    served: Served, ranges: list[Range], groups: range, num_requests: int
) -> None:
    """One unit fetched 53 MB for 0.9 MB, and a shard 484 MB in 92 requests for 0.65 MB: handles read ahead."""
    (shard,), _ = find_shards(served.config())
    wanted = wanted_bytes(served, groups)
    served.counted()
    assert read(served, shard, ranges) == [row for start, stop in ranges for row in range(start, stop)]
    heads, (footer, *chunks) = split(served.counted())
    assert footer.num_bytes == shard.source.footer_bytes
    assert wanted <= sum(sent.num_bytes for sent in chunks) <= AT_MOST * wanted
    assert len(chunks) == num_requests
    assert len(heads) == 2  # who is it, and is it still the same


def split(sent: list[Sent]) -> tuple[list[Sent], list[Sent]]:
    return [one for one in sent if one.method == "HEAD"], [one for one in sent if one.method == "GET"]


def test_planning_fetches_a_footer_once_and_then_no_more(served: Served, tmp_path: Path) -> None:
    config, columns, store = served.config(), Columns(("text",), ("id",)), Store(str(tmp_path))
    served.counted()
    first = KeptFooters(store, columns)
    planned = find_shards(config, None, columns, first)
    assert len(contents(served.counted())) == 1
    keep_footers(first, config, Patience(), *planned)
    served.counted()
    assert find_shards(config, None, columns, KeptFooters(store, columns)) == planned
    assert not contents(served.counted())


def contents(sent: list[Sent]) -> list[Sent]:
    """Those that are no listings, nor ask whether a folder above is a table."""
    return [one for one in split(sent)[1] if "list-type" not in one.path]
